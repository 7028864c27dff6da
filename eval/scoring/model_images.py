"""A saved model as a source of images: loading it, choosing its sampler, drawing seeds a..b."""

import hashlib
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from trilemma.eval.options import ModelConfig, SamplingConfig
from trilemma.eval.scoring.results import Origin
from trilemma.pipelines import as_ours
from trilemma.training.images.image_set import Images
from trilemma.training.loop.machine import PROCESS_GROUP, set_cpu_threads
from trilemma.training.sampling import Share, draw_batches


def load_model(path_or_id: str, device: torch.device, trust_remote_code: bool = False) -> DiffusionPipeline:
    """A pipeline of one of the families, from a folder or the Hub."""
    try:
        # A folder is the user's own; code from the Hub runs only where it was allowed.
        trusted = trust_remote_code or Path(path_or_id).is_dir()
        pipeline = DiffusionPipeline.from_pretrained(path_or_id, trust_remote_code=trusted)
    except (OSError, TypeError, ValueError) as problem:  # TypeError: a part's code is missing
        raise ValueError(f"--model {path_or_id!r} is not a pipeline folder or Hub id: {problem}") from problem
    pipeline = as_ours(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@dataclass
class Drawing:
    """Images of one model, drawn when iterated over: indices (B,), uint8 (B, C, H, W), labels (B,) or None.

    labels: one for each image, for class-conditional models.
    """

    pipeline: DiffusionPipeline
    source: str
    sampling: SamplingConfig
    batch_size: int
    accelerator: Accelerator
    labels: list[int] | None = None
    seconds: float = 0.0
    done: frozenset[int] = field(default_factory=frozenset)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        options = (
            {} if self.sampling.guidance_scale is None else {"guidance_scale": self.sampling.guidance_scale}
        )
        wanted = [i for i in range(self.sampling.num_samples) if i not in self.done]
        drawn = draw_batches(
            self.pipeline,
            [self.sampling.seed + i for i in wanted],
            batch_size=self.batch_size,
            num_inference_steps=self.sampling.num_inference_steps,
            class_labels=None if self.labels is None else [self.labels[i] for i in wanted],
            options=options,
            share=Share.of(self.accelerator),
        )
        main = self.accelerator.is_main_process
        with tqdm(total=len(wanted), desc="drawing", unit="image", disable=None if main else True) as bar:
            while True:
                began = time.perf_counter()
                try:
                    positions, images = next(drawn)
                except StopIteration:
                    return
                self.seconds += time.perf_counter() - began
                index = torch.tensor(wanted)[positions]
                labels = None if self.labels is None else torch.tensor(self.labels)[index]
                yield index, images, labels
                bar.update(min(len(images) * self.accelerator.num_processes, len(wanted) - bar.n))

    def origin(self, step: int | None, images_seen: int | None) -> Origin:
        """Where these images come from, once they are drawn, and how far training had come; collective."""
        seconds = sum(gather_object([self.seconds]))
        steps, first, n = self.sampling.num_inference_steps, self.sampling.seed, self.sampling.num_samples
        given = self.sampling.guidance_scale
        guidance = self.pipeline.default_guidance if given is None else given
        guided = guidance not in (None, 1.0)
        return Origin(
            source=self.source,
            n=n,
            seeds=f"{first}..{first + n - 1}",
            sampler=self.sampling.sampler or self.pipeline.sampler,
            num_inference_steps=steps,
            nfe=None if steps is None else self.pipeline.calls(steps, guided),
            classes=shlex.join(self.sampling.classes) if self.sampling.classes else None,
            guidance_scale=guidance,
            seconds_per_image=seconds / n,
            device=self.accelerator.device.type,
            step=step,
            images_seen=images_seen,
        )


def trained(model: str) -> tuple[int | None, int | None]:
    """Steps and images of training, from the run.json beside a model."""
    path = Path(model) / "run.json"
    facts: Mapping[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return facts.get("steps"), facts.get("images_seen")


def open_drawing(model: ModelConfig, sampling: SamplingConfig, accelerator: Accelerator) -> Drawing:
    """The images that the flags ask for."""
    if model.model is None:
        raise ValueError("--model must name a model folder or a Hub id")
    pipeline = load_model(model.model, accelerator.device, model.trust_remote_code)
    if sampling.sampler:
        pipeline = pipeline.with_sampler(sampling.sampler)
        pipeline.set_progress_bar_config(disable=True)
    steps = pipeline.steps(sampling.num_inference_steps)
    sampling = replace(sampling, num_inference_steps=steps)
    # The name of a folder, not where it lies on this machine.
    source = Path(model.model).resolve().name if Path(model.model).is_dir() else model.model
    return Drawing(pipeline, source, sampling, model.batch_size, accelerator)


def labels_like(drawing: Drawing, images: Images | None) -> list[int] | None:
    """Classes to draw, in the data's own frequencies and a fixed random order; None for other models."""
    names, wanted = drawing.pipeline.class_names, drawing.sampling.classes
    if names is None:
        if wanted or drawing.sampling.guidance_scale is not None:
            raise ValueError("--classes and --guidance_scale are for class-conditional models; this is none")
        return None
    if drawing.sampling.guidance_scale is not None and drawing.pipeline.default_guidance is None:
        raise ValueError(f"--guidance_scale is nothing that a {type(drawing.pipeline).__name__} has")
    n = drawing.sampling.num_samples
    if wanted:
        numbers = {str(k): k for k in range(len(names))} | {name: k for k, name in enumerate(names)}
        unknown = [name for name in wanted if name not in numbers]
        if unknown:
            raise ValueError(f"--classes must be of {', '.join(names)}; got {unknown[0]!r}")
        return [numbers[wanted[i % len(wanted)]] for i in range(n)]
    if images is None or images.labels is None:
        return [i % len(names) for i in range(n)]
    order = np.random.default_rng(0).permutation(len(images))
    return [int(images.labels[order[i % len(order)]]) for i in range(n)]


def draw_to_files(model: ModelConfig, sampling: SamplingConfig, output: str) -> None:
    """Draw to a folder of PNGs or to an .npy, each process its share."""
    accelerator = Accelerator(kwargs_handlers=[PROCESS_GROUP])
    set_cpu_threads(accelerator, model.cpu_threads)
    drawing = open_drawing(model, sampling, accelerator)
    drawing.labels = labels_like(drawing, None)
    (draw_to_array if output.endswith(".npy") else draw_to_folder)(drawing, Path(output))
    accelerator.wait_for_everyone()
    accelerator.print(f"{sampling.num_samples} images in {output}")


def claim(drawing: Drawing, path: Path, **more: Any) -> None:
    """Note beside the images what they are drawn from; ValueError where others have been begun there."""
    weights = hashlib.sha256()
    for tensor in drawing.pipeline.network.state_dict().values():
        weights.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    wanted = {**asdict(drawing.sampling), "model": drawing.source, "weights": weights.hexdigest(), **more}
    wanted.pop("num_samples")
    text = json.dumps(wanted, indent=2)
    if path.exists() and path.read_text() != text:
        raise ValueError(
            f"--output: {path.parent} holds images that were drawn otherwise (see {path.name}); name another "
            "folder, or delete them"
        )
    drawing.accelerator.wait_for_everyone()
    if drawing.accelerator.is_main_process:
        path.write_text(text)


def draw_to_folder(drawing: Drawing, folder: Path) -> None:
    """`<seed>.png` for each image; those that are there are not drawn again."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.png")) and not (folder / "drawing.json").exists():
        raise ValueError(f"--output: {folder} holds images that were not drawn here; name another folder")
    drawing.accelerator.wait_for_everyone()
    claim(drawing, folder / "drawing.json", seed=None)
    first = drawing.sampling.seed
    drawing.done = frozenset(int(p.stem) - first for p in folder.glob("*.png") if p.stem.isdigit())
    drawing.accelerator.wait_for_everyone()
    for index, images, _ in drawing:
        for i, image in zip(index.tolist(), images.permute(0, 2, 3, 1).numpy(), strict=True):
            target = folder / f"{first + i:08d}.png"
            aside = target.with_suffix(".partial")
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(aside, format="png")
            aside.replace(target)


def draw_to_array(drawing: Drawing, path: Path) -> None:
    """uint8 (N, H, W, C) by way of a memory map that all processes fill; the marks beside it make it
    resumable.
    """
    accelerator, n = drawing.accelerator, drawing.sampling.num_samples
    aside, marks = path.with_suffix(".partial.npy"), path.with_suffix(".drawn.npy")
    config = drawing.pipeline.network.config
    shape = (n, config.sample_size, config.sample_size, config.in_channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_suffix(".drawing.json")
    if not aside.exists():
        note.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    claim(drawing, note, n=n)
    begun = aside.exists() and marks.exists() and np.load(aside, mmap_mode="r").shape == shape
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not begun:
        np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=shape).flush()
        np.lib.format.open_memmap(marks, mode="w+", dtype=np.bool_, shape=(n,)).flush()
    accelerator.wait_for_everyone()
    images_map, drawn_map = np.load(aside, mmap_mode="r+"), np.load(marks, mmap_mode="r+")
    drawing.done = frozenset(np.flatnonzero(drawn_map).tolist())
    accelerator.wait_for_everyone()
    for index, images, _ in drawing:
        images_map[index.numpy()] = images.permute(0, 2, 3, 1).numpy()
        images_map.flush()
        drawn_map[index.numpy()] = True
    drawn_map.flush()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        aside.replace(path)
        marks.unlink()
        note.unlink()
