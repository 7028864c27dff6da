"""The toolkit from Python: images, training, evaluation, saving, loading. `docs/api.md` is its page.

These are the functions that the entry points call. Options are keyword arguments with the names of the flags,
checked by the same code; errors are exceptions, and no call ends the process. What a call changes in the
process (signal handlers, accelerate's state, the number of threads) is put back when it returns.
"""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.scoring import after_training
from trilemma.eval.scoring.model_images import load_model
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.scoring.yardsticks import Reference
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.model_cards.rendering.differences import card_follows
from trilemma.training import families
from trilemma.training.devices.memory import saying_what_to_lower
from trilemma.training.entry import check
from trilemma.training.images import image_set
from trilemma.training.images.image_set import Images, images_of
from trilemma.training.loop.machine import closing_groups, make_accelerator
from trilemma.training.loop.method import GradientDescent, Objective
from trilemma.training.loop.stop import NOTICES
from trilemma.training.options.command_line import parser_of, resolve
from trilemma.training.options.flags import Config
from trilemma.training.options.groups import DataConfig
from trilemma.training.options.in_memory import InMemory, check_replaced, with_network
from trilemma.training.options.keywords import Keywords, configured, options_of
from trilemma.training.options.plugins import load_from
from trilemma.training.run import REMEDY, train_and_save


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C, the stop button of a notebook, SIGTERM or SIGUSR1.

    A checkpoint was written unless the run showed a sign of failure: the same call continues. code: the exit
    code that the entry points give, 130 after Ctrl-C, 75 otherwise.
    """

    def __init__(self, code: int):
        super().__init__("training was stopped; the same call continues from its checkpoint")
        self.code = code


def load_images(
    source: str | Path | Tensor | np.ndarray,
    labels: Tensor | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    name: str = "own images",
    **options: Any,
) -> Images:
    """Images to train on or to compare with.

    source: 'digits', a Hub id, a folder, or uint8 (N, C, H, H) with C 1 or 3. labels (N,) in 0..K-1 and the K
    class_names are for arrays, whose `name` is shown in results. options: those of data, such as resolution,
    train_split or cache_dir. ValueError for images that cannot be used.
    """
    if not isinstance(source, str | Path):
        for option in options:
            raise ValueError(f"--{option} has no effect on an array: it is taken as it is")
        return images_of(_array(source), None if labels is None else _array(labels), class_names, name)
    if labels is not None or class_names is not None:
        raise ValueError("labels and class_names are for arrays; name --label_column and --classes here")
    place = "train_data_dir" if Path(source).is_dir() else "dataset_name"
    values = options_of(DataConfig, {place: source, **options})
    if values.get("streaming"):
        raise ValueError("--streaming has no images to load; give it to train, with the data")
    return replace(image_set.load_images(DataConfig(**values)), options=values)


def train(
    images: Images | None = None,
    family: str = "unconditional",
    *,
    held_out: Images | None = None,
    network: ModelMixin | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """Train a model as `training/train_<family>.py` does, and load what it saved in output_dir.

    images: of `load_images`; without them options say which, or the preset does. held_out: images for the
    validation loss, in place of validation_size. network: one that is made already, such as a UNet2DModel; it
    is trained in place, and its weights after training are the raw ones, not the average. preset, config: as
    the flags. The same call continues a run that was stopped, and raises no error if it is complete.

    ValueError for options, data or a network that do not fit; OSError, FloatingPointError, OutOfMemory as
    the messages say; Interrupted after a signal.
    """
    memory = InMemory(images, held_out, network)
    settings, given, memory = _settings(family, memory, preset, config, options)
    try:
        with _guest(REMEDY):
            train_and_save(settings, family, given, memory)
    except SystemExit as stop:  # after a signal, when a checkpoint is written
        raise Interrupted(stop.code) from None
    return load(settings.run.output_dir)


def make_objective(
    images: Images,
    family: str = "unconditional",
    *,
    network: ModelMixin | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    **options: Any,
) -> Objective:
    """The objective that `train` would descend, on its device, for a loop of your own.

    `objective(x0, labels)` gives losses (B,) and logs; its parameters are those to train, and
    `objective.pipeline(objective.net)` samples. ValueError for a family that is not trained by descending one
    objective, such as a GAN.
    """
    settings, _, _ = _settings(family, InMemory(images, None, network), preset, config, options)
    with _guest(REMEDY):
        accelerator = make_accelerator(settings)
        torch.manual_seed(settings.run.seed)
        settings = with_network(settings, network)
        method = families.family(family).build(settings, images, accelerator, 1)
    if not isinstance(method, GradientDescent):
        raise ValueError(f"{family} models are not trained by descending one objective; use train")
    vars(method.objective).pop("forward", None)  # in the script's precision: accelerate's state ends here
    return method.objective


def evaluate(
    model: str | Path | DiffusionPipeline | None = None,
    reference: str | Path | Images | None = None,
    *,
    held_out: Images | None = None,
    **options: Any,
) -> list[ResultLine]:
    """Measure a model as `eval/evaluate.py` does: print a table and return its lines.

    model: a folder, a Hub id, or a pipeline in memory, which is moved to the device. reference: a place as
    --reference takes it, or images; held_out: others of the same data, for metrics that compare with images
    not trained on. The lines of a folder are added to its results.jsonl; those of a pipeline in memory go to
    a file only where `output` names one. ValueError, OSError and OutOfMemory as the messages say.
    """
    load_plugins(options.pop("plugin", ()))
    named = {"model": model, "reference": reference}
    named = {name: value for name, value in named.items() if isinstance(value, str | Path)}
    settings = configured(EvaluateConfig, {**named, **options})
    pipeline = model if isinstance(model, DiffusionPipeline) else None
    compared = Reference(reference, held_out) if isinstance(reference, Images) else None
    with _guest("lower --batch_size"), _for_sampling(pipeline), card_follows(settings.model.model):
        return after_training.evaluate(settings, pipeline, compared)


def save(pipeline: DiffusionPipeline, folder: str | Path) -> Path:
    """Save a pipeline so that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads it.

    Without Trilemma: a model that plain diffusers cannot sample brings its code. Other files in the folder
    stay. ValueError for a pipeline that cannot be shipped, OSError where it cannot be written.
    """
    return save_bundle(pipeline, folder)


def load(
    model: str | Path, *, trust_remote_code: bool = False, plugin: Sequence[str | Path] = ()
) -> DiffusionPipeline:
    """A pipeline of one of the families, from a folder or the Hub, on the device of this process.

    ValueError for what is no such pipeline. trust_remote_code: run code that comes with a model of the Hub.
    """
    load_plugins(plugin)
    with _guest("take a smaller model"):
        device = PartialState().device
        return load_model(str(model), device, trust_remote_code)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _settings(
    family: str, memory: InMemory, preset: str | None, config: str | Path | None, options: Mapping[str, Any]
) -> tuple[Config, frozenset[str], InMemory]:
    """The resolved options, the names of those that were given, and the objects that stand for others."""
    if not isinstance(memory.images, Images | None):
        raise ValueError(f"images must come from load_images(...); got {memory.images!r:.80}")
    if memory.images is not None and memory.images.options is not None:  # its options say it all
        options = {**memory.images.options, **options}
        memory = memory._replace(images=None)
    file = None if config is None else str(config)
    load_plugins(options.get("plugin") or (), file)
    parser = parser_of(family, "", Keywords)
    typed = parser.read(options)
    check_replaced(memory, typed)
    given = frozenset(typed) | frozenset(parser.read_file(file) if file else ())
    return resolve(parser, family, {**typed, "preset": preset, "config": file}, check, memory), given, memory


def load_plugins(plugin: Sequence[str | Path], config: str | None = None) -> None:
    """Run plug-ins, each once in a process, or where there are none those of a --config; ValueError."""
    if isinstance(plugin, str | Path):
        raise ValueError(f"plugin= must be a list of files; got {str(plugin)!r}")
    words = ["--plugin", *map(str, plugin)] if plugin else []
    load_from([*words, *(["--config", config] if config else [])], with_config=True)


@contextmanager
def _guest(remedy: str) -> Iterator[None]:
    """The process inside the block is that of a script, which goes on after it.

    remedy: what helps where memory runs out.
    """
    threads, hook = torch.get_num_threads(), threading.excepthook
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in NOTICES} if main else {}
    alone = not PartialState._shared_state  # else the script has an Accelerator of its own, which stays
    try:
        with ExitStack() as stack:
            if alone:
                stack.enter_context(closing_groups())
            stack.enter_context(saying_what_to_lower(remedy))
            yield
    finally:
        if alone:  # or a later call could not have another precision
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        torch.set_num_threads(threads)
        threading.excepthook = hook


@contextmanager
def _for_sampling(pipeline: DiffusionPipeline | None) -> Iterator[None]:
    """The modules of a pipeline are in evaluation mode inside the block."""
    parts = pipeline.components.values() if pipeline is not None else ()
    training = [part for part in parts if isinstance(part, nn.Module) and part.training]
    for part in training:
        part.eval()
    try:
        yield
    finally:
        for part in training:
            part.train()
