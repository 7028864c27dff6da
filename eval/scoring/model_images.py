"""A saved model as a source of images: loading it, choosing its sampler, drawing seeds a..b."""

import copy
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from torch import Tensor, nn

from trilemma.eval.options import SAVED, ModelConfig, SamplingConfig
from trilemma.eval.scoring.results import Origin
from trilemma.pipelines import as_ours
from trilemma.pipelines.files.hub import check_place, patience
from trilemma.pipelines.files.reading import FileError
from trilemma.pipelines.files.saved import check_loadable, index_path, read_index
from trilemma.training import families
from trilemma.training.devices.compiled import compiled
from trilemma.training.devices.precision import HALF, check_half, network_in, plain_float32
from trilemma.training.images.image_set import Images
from trilemma.training.networks.whole import check_files, check_part
from trilemma.training.output_folder import OutputFolder, own_sampling
from trilemma.training.progress import Progress, counted
from trilemma.training.sampling import Share, draw_batches


def load_model(path_or_id: str, device: torch.device, trust_remote_code: bool = False) -> DiffusionPipeline:
    """A pipeline of one of the families, from a folder or the Hub."""
    check_place(path_or_id, "--model")
    folder = OutputFolder(Path(path_or_id))
    if not sys.stderr.isatty():
        disable_progress_bar()  # diffusers' own, which rewrites a line
    try:
        # A folder is the user's own; code from the Hub runs only where it was allowed.
        trusted = trust_remote_code or Path(path_or_id).is_dir()
        pipeline = _load(path_or_id, trusted)
    except FileError:
        raise
    except Exception as problem:  # diffusers and the model's own code raise anything for a damaged folder
        text = f"is not a pipeline folder or Hub id: {type(problem).__name__} {problem}"
        raise FileError(f"--model {path_or_id!r}", text) from problem
    for name, part in pipeline.components.items():
        check_part(part, Path(path_or_id) / name)
    run = folder.read_run()
    family, plugins = run.get("family"), run.get("plugins")
    if family and plugins and family not in families.names():
        raise ValueError(
            f"--model {path_or_id!r} is of the family {family} of a plug-in; give "
            f"--plugin {' '.join(plugins)}"
        )
    pipeline = as_ours(pipeline, family)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _load(path_or_id: str, trusted: bool) -> DiffusionPipeline:
    """Nothing is loaded before the files are looked at; no pickle is."""
    index, options = index_path(path_or_id), {"trust_remote_code": trusted, "use_safetensors": True}
    if not Path(path_or_id).is_dir():
        read_index(index)
        with patience():
            index = Path(DiffusionPipeline.download(path_or_id, **options)) / index.name
    if index.is_file():
        OutputFolder(index.parent).read_index()
        check_loadable(index)
        check_files(index.parent)
    return DiffusionPipeline.from_pretrained(index.parent, **options)


@dataclass
class Drawing:
    """Images of one model, drawn when iterated over: indices (B,), uint8 (B, C, H, W), labels (B,) or None.

    labels: one for each image, for class-conditional models. done: indices that are not drawn again. saved:
    the pipeline as it was loaded, if no flag but the run's configuration chose the sampler.
    """

    pipeline: DiffusionPipeline
    source: str
    sampling: SamplingConfig
    batch_size: int
    accelerator: Accelerator
    labels: list[int] | None = None
    seconds: float = 0.0
    done: frozenset[int] = field(default_factory=frozenset)
    saved: DiffusionPipeline | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        guidance = self.sampling.guidance_scale
        to_draw = [i for i in range(self.sampling.num_samples) if i not in self.done]
        batches = draw_batches(
            self.pipeline,
            [self.sampling.seed + i for i in to_draw],
            batch_size=self.batch_size,
            num_inference_steps=self.sampling.num_inference_steps,
            class_labels=None if self.labels is None else [self.labels[i] for i in to_draw],
            options={} if guidance is None else {"guidance_scale": guidance},
            share=Share.of(self.accelerator),
        )
        main, device = self.accelerator.is_main_process, self.accelerator.device
        mine = len(to_draw) - self.accelerator.process_index  # above 0 if this process has images to draw
        with (
            Progress("drawing samples", len(to_draw), "image", show=main) as progress,
            compiled(self.sampling.compile and mine > 0, self.pipeline.network),
            _counted(self.pipeline.network, progress),
        ):
            while True:
                began = time.perf_counter()
                try:
                    with plain_float32(device), self._precision():
                        positions, images = next(batches)
                except StopIteration:
                    return
                self.seconds += time.perf_counter() - began
                index = torch.tensor(to_draw)[positions]
                labels = None if self.labels is None else torch.tensor(self.labels)[index]
                yield index, images, labels
                progress.update(min(len(images) * self.accelerator.num_processes, len(to_draw) - progress.n))

    def _precision(self) -> AbstractContextManager[None]:
        half = self.sampling.mixed_precision
        on = self.accelerator.device
        return network_in(half, self.pipeline.network, on) if half in HALF else nullcontext()

    def origin(self, step: int | None, images_seen: int | None) -> Origin:
        """Where these images come from, once they are drawn, and how far training had come; collective."""
        seconds = sum(gather_object([self.seconds]))
        sampling, steps = self.sampling, self.sampling.num_inference_steps
        default = self.pipeline.default_guidance
        guidance = default if sampling.guidance_scale is None else sampling.guidance_scale
        guided = guidance not in (None, 1.0)
        return Origin(
            source=self.source,
            n=sampling.num_samples,
            seeds=f"{sampling.seed}..{sampling.seed + sampling.num_samples - 1}",
            sampler=self.pipeline.sampler,
            num_inference_steps=steps,
            nfe=None if steps is None else self.pipeline.calls(steps, guided),
            classes=shlex.join(sampling.classes) if sampling.classes else None,
            guidance_scale=guidance,
            seconds_per_image=seconds / sampling.num_samples,
            device=self.accelerator.device.type,
            step=step,
            images_seen=images_seen,
            mixed_precision=sampling.mixed_precision if sampling.mixed_precision in HALF else None,
        )


@contextmanager
def _counted(network: nn.Module, progress: Progress) -> Iterator[None]:
    """The calls of the network stand beside the images, of which a batch may take minutes."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        progress.note(**{"network calls": f"{calls:,}"})

    hook = network.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()


def training_so_far(model: str | None) -> tuple[int | None, int | None]:
    """Steps and images of training, from the run.json beside a model; None where there is none."""
    run = OutputFolder(Path(model)).read_run() if model else {}
    return run.get("steps"), run.get("images_seen")


def default_output(model: str | None) -> str:
    """The results file beside a model that is a folder, else here."""
    inside = model and Path(model).is_dir()
    return str(OutputFolder(Path(model if inside else ".")).results)


def open_drawing(model: ModelConfig, sampling: SamplingConfig, accelerator: Accelerator) -> Drawing:
    """The images that the flags ask for; labels are left to `labels_like`."""
    if model.model is None:
        raise ValueError("--model must name a model folder or a Hub id")
    check_half(sampling.mixed_precision, accelerator.device)
    pipeline = load_model(model.model, accelerator.device, model.trust_remote_code)
    # The name of a folder, not where it lies on this machine.
    folder = OutputFolder(Path(model.model))
    source = folder.name if Path(model.model).is_dir() else model.model
    own = sampling
    if sampling.sampler is None:
        with suppress(FileError):  # of a damaged file, which evaluation does not need
            own = _like_run(sampling, folder.read_config(), pipeline)
    drawing = drawing_of(pipeline, source, own, model.batch_size, accelerator)
    if own is not sampling:
        drawing.saved = pipeline
        steps = counted(drawing.sampling.num_inference_steps, "step")
        accelerator.print(
            f"Drawing with {own.sampler}, {steps} an image, as the run drew its own samples. To draw "
            f"as the saved pipeline does: --sampler {pipeline.sampler} "
            f"--num_inference_steps {pipeline.steps(None)}."
        )
    return drawing


def _like_run(sampling: SamplingConfig, run: dict[str, Any], pipeline: DiffusionPipeline) -> SamplingConfig:
    """With the sampler of the run's own samples, and its number of steps if the flags give no number.

    The saved pipeline is one that plain diffusers can sample, which may take a hundred times the steps.
    """
    (name, steps), usual = own_sampling(run), pipeline.steps(None)
    steps = sampling.num_inference_steps or steps
    same = (name, steps or usual) == (pipeline.sampler, sampling.num_inference_steps or usual)
    if same or name not in pipeline.samplers():
        return sampling
    return replace(sampling, sampler=name, num_inference_steps=steps)


def drawing_in_memory(
    pipeline: DiffusionPipeline, sampling: SamplingConfig, batch_size: int, accelerator: Accelerator
) -> Drawing:
    """The images of a pipeline of a script, which is left as it is but for its device."""
    pipeline = copy.copy(as_ours(pipeline)).to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    return drawing_of(pipeline, f"{pipeline.family} pipeline", sampling, batch_size, accelerator)


def drawing_of(
    pipeline: DiffusionPipeline,
    source: str,
    sampling: SamplingConfig,
    batch_size: int,
    accelerator: Accelerator,
) -> Drawing:
    """The images of a pipeline of one of the families; source: what results call it."""
    if sampling.sampler == SAVED:
        sampling = replace(sampling, sampler=None)
    elif sampling.sampler:
        pipeline = pipeline.with_sampler(sampling.sampler)
        pipeline.set_progress_bar_config(disable=True)
    sampling = replace(sampling, num_inference_steps=pipeline.steps(sampling.num_inference_steps))
    return Drawing(pipeline, source, sampling, batch_size, accelerator)


def labels_like(drawing: Drawing, images: Images | None) -> list[int] | None:
    """Classes to draw, in the data's own frequencies and a fixed random order; None for other models."""
    pipeline, sampling = drawing.pipeline, drawing.sampling
    names, chosen = pipeline.class_names, sampling.classes
    if names is None:
        if chosen or sampling.guidance_scale is not None:
            raise ValueError(
                "--classes and --guidance_scale are for class-conditional models; this model has no classes"
            )
        return None
    if sampling.guidance_scale is not None and pipeline.default_guidance is None:
        raise ValueError(f"--guidance_scale has no effect: {pipeline.family} models have no guidance")
    n = sampling.num_samples
    if chosen:
        numbers = {str(k): k for k in range(len(names))} | {name: k for k, name in enumerate(names)}
        unknown = [name for name in chosen if name not in numbers]
        if unknown:
            raise ValueError(f"--classes must be among {', '.join(names)}; got {unknown[0]!r}")
        return [numbers[chosen[i % len(chosen)]] for i in range(n)]
    if images is None or images.labels is None:
        return [i % len(names) for i in range(n)]
    order = np.random.default_rng(0).permutation(len(images))
    return [int(images.labels[order[i % len(order)]]) for i in range(n)]
