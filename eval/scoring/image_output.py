"""The body of `eval/generate.py`: images of a model as files, resumable, each process its share."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from trilemma.eval.options import ModelConfig, SamplingConfig
from trilemma.eval.scoring.model_images import Drawing, labels_like, open_drawing
from trilemma.training.loop.machine import PROCESS_GROUP, set_cpu_threads


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
    """Write beside the images what they are drawn from; ValueError where other images are there already."""
    weights = hashlib.sha256()
    for tensor in drawing.pipeline.network.state_dict().values():
        weights.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    facts = {**asdict(drawing.sampling), "model": drawing.source, "weights": weights.hexdigest(), **more}
    facts.pop("num_samples")
    text = json.dumps(facts, indent=2)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"--output: {path.parent} holds images that were drawn with other settings (see {path.name}); "
            "name another folder, or delete them"
        )
    drawing.accelerator.wait_for_everyone()
    if drawing.accelerator.is_main_process:
        path.write_text(text, encoding="utf-8")


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
    """uint8 (N, H, W, C) in a memory map that all processes fill; the files beside it make it resumable."""
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
