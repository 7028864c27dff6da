"""What `--streaming` refuses, because it needs all images of a split. Needs no torch.

Nobody has seen all of a stream: how many images it has is not known, and the first ones stand for it.
"""

from typing import Any

NEED_ALL = {
    "max_train_images": "the first images fit on the disk: leave out --streaming",
    "classes": "choose them when the shards are written, or leave out --streaming",
}
"""Options of the data that are refused, and what helps."""
NEED_LENGTH = {
    "minutes": "give --net, --train_batch_size and --max_train_steps",
    "save_images_epochs": "give --sample_steps",
    "save_model_epochs": "the last model is saved at the end, and --eval_steps keeps the best one",
}
"""Options of a run that are refused, and what helps."""


def check_data(data: Any) -> None:
    """ValueError for options of the data that do not go together with `--streaming`."""
    if not data.streaming:
        return
    for name, remedy in NEED_ALL.items():
        if getattr(data, name) is not None:
            raise ValueError(f"--{name} is not offered with --streaming: {remedy}")
    size = data.validation_size
    if size and data.validation_split is None:
        raise ValueError(
            f"--validation_size {size} would be taken from images that --streaming trains on: name a split "
            "of held-out images with --validation_split, or pass --validation_size 0"
        )
    if size and size > data.stream_head:
        raise ValueError(
            f"--validation_size must be at most --stream_head, {data.stream_head}, with --streaming; "
            f"got {size}"
        )


def check_run(config: Any, values: dict[str, Any]) -> None:
    """ValueError for options that count epochs, of which a stream does not know the length.

    values: all options of the configuration, by name.
    """
    if not config.data.streaming:
        return
    for name, remedy in NEED_LENGTH.items():
        if values.get(name) is not None:
            raise ValueError(f"--{name} is not offered with --streaming, which knows no length: {remedy}")
    if config.run.max_train_steps is None:
        raise ValueError(
            "--streaming needs --max_train_steps: how many images an epoch has is not known before it is read"
        )
