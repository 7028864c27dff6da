"""Drawing images from a pipeline: one for each seed, each process its share of the seeds.

An image depends on its seed alone (see pipelines/), so shares, batches and their order are free choices.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from torch import Tensor

from trilemma.training.images.image_set import to_uint8


class Share(NamedTuple):
    """Which of `world` equal parts of the seeds is drawn: by default all of them."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Share":
        """This process's part."""
        return cls(accelerator.process_index, accelerator.num_processes)


ALL = Share()


def every_class(num_classes: int | None, count: int) -> list[int] | None:
    """Classes 0, 1, ... K-1, 0, ... for the images of a sheet; None for models without classes."""
    return None if num_classes is None else [i % num_classes for i in range(count)]


def shard(items: Sequence, rank: int, world: int) -> list:
    """This rank's items: every world-th, from its rank on, without duplicates, omissions or padding."""
    return list(items)[rank::world]


def draw_batches(
    pipeline: DiffusionPipeline,
    seeds: Sequence[int],
    *,
    batch_size: int,
    num_inference_steps: int | None = None,
    class_labels: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    share: Share = ALL,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One image for each seed of the share: positions (B,) and uint8 (B, C, H, W), on the CPU.

    class_labels: one for each seed, for pipelines that take them. options: further arguments of the
    pipeline's call, such as guidance_scale.
    """
    positions = shard(range(len(seeds)), *share)
    for start in range(0, len(positions), batch_size):
        rows = positions[start : start + batch_size]
        per_image: dict[str, Any] = {"seeds": [seeds[row] for row in rows]}
        if class_labels is not None:
            per_image["class_labels"] = [class_labels[row] for row in rows]
        output = pipeline(
            **per_image, **(options or {}), num_inference_steps=num_inference_steps, output_type="pt"
        )
        bad = output.images.flatten(1).isfinite().all(1).logical_not().cpu()
        if bad.any():
            seed = per_image["seeds"][int(bad.nonzero()[0])]
            raise ValueError(
                f"the image of seed {seed} is not finite: the model's training has diverged, or its numbers "
                "exceed this precision or this sampler. Nothing is made of it; take an earlier model"
            )
        yield torch.tensor(rows), to_uint8(output.images).cpu()


def sample(
    pipeline: DiffusionPipeline,
    seeds: Sequence[int],
    *,
    batch_size: int,
    num_inference_steps: int | None = None,
    class_labels: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    share: Share = ALL,
) -> Tensor:
    """All images of the share in its order, uint8 (n, C, H, W) on the CPU."""
    parts = draw_batches(
        pipeline,
        seeds,
        batch_size=batch_size,
        num_inference_steps=num_inference_steps,
        class_labels=class_labels,
        options=options,
        share=share,
    )
    images = [part for _, part in parts]
    if images:
        return torch.cat(images)
    # An empty share: one image shows the shape of the others.
    labels = None if class_labels is None else class_labels[:1]
    one = draw_batches(
        pipeline, seeds[:1], batch_size=1, num_inference_steps=1, class_labels=labels, options=options
    )
    return next(one)[1][:0]


def gather_in_order(share: Tensor) -> Tensor:
    """All ranks' shares of different sizes (n_rank, ...) -> the whole (n, ...) in the order before `shard`.

    Every rank must call it; every rank gets the whole.
    """
    shares = gather_object([share])
    whole = torch.empty(sum(map(len, shares)), *share.shape[1:], dtype=share.dtype)
    for rank, part in enumerate(shares):
        whole[rank :: len(shares)] = part
    return whole
