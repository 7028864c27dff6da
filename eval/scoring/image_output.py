"""The body of `eval/generate.py`: images of a model as files, resumable, each process its share."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image

from trilemma.eval.options import ModelConfig, SamplingConfig
from trilemma.eval.plots.sheets import sheet
from trilemma.eval.scoring.model_images import Drawing, labels_like, open_drawing
from trilemma.pipelines.files.writing import naming, sync_to_disk, target_of, write_all, write_text, written
from trilemma.training.devices.precision import HALF
from trilemma.training.devices.ranks import decided, on_all, require_same, require_same_code, share_folder
from trilemma.training.images.points import draws_points
from trilemma.training.loop.machine import evaluation_accelerator

READ_AT_ONCE = 256
"""Images of a part that are read at once."""


def draw_to_files(model: ModelConfig, sampling: SamplingConfig, output: str) -> None:
    """Draw to a folder of PNGs, an .npy file or a sheet; each process draws its share."""
    accelerator = evaluation_accelerator(model.cpu_threads)
    require_same(
        accelerator,
        {f"--{name}": value for name, value in asdict(sampling).items()}
        | {"the end of --output": Path(output).suffix},
        "start all of them with the same flags",
    )
    require_same_code(accelerator)
    drawing = on_all(accelerator, lambda: open_drawing(model, sampling, accelerator))
    drawing.labels = labels_like(drawing, None)
    path = Path(output)
    draw = {".npy": draw_to_array, ".png": draw_to_sheet}.get(path.suffix.lower(), draw_to_folder)
    draw(drawing, path)
    accelerator.wait_for_everyone()
    accelerator.print(f"{sampling.num_samples} images in {output}")


def claim(drawing: Drawing, path: Path, **more: Any) -> None:
    """Write beside the images what they are drawn from; ValueError where other images are there already."""
    weights = hashlib.sha256()
    for tensor in drawing.pipeline.network.state_dict().values():
        weights.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    require_same(
        drawing.accelerator,
        {"the model's weights": weights.hexdigest()},
        "the model must be the same on all machines",
    )
    facts = {**asdict(drawing.sampling), "model": drawing.source, "weights": weights.hexdigest(), **more}
    del facts["num_samples"], facts["compile"]  # which are no matter of what an image is
    if facts["mixed_precision"] not in HALF:  # folders of older versions have no such entry
        facts.pop("mixed_precision")
    text = json.dumps(facts, indent=2)

    def write() -> None:
        same = path.exists() and path.read_bytes() == text.encode()
        if not same and path.exists() and has_images(path.parent):
            raise ValueError(
                f"--output: {path.parent} holds images that were drawn with other settings (see "
                f"{path.name}); name another folder, or delete them"
            )
        if not same:
            write_text(path, text)

    decided(drawing.accelerator, write)


def has_images(folder: Path) -> bool:
    """Whether anything was drawn into a folder."""
    return any(path.stat().st_size for kind in ("*.png", "*.part") for path in folder.glob(kind))


def draw_to_folder(drawing: Drawing, folder: Path) -> None:
    """`<seed>.png` for each image; those that are there are not drawn again."""
    accelerator, first = drawing.accelerator, drawing.sampling.seed
    share_folder(folder, accelerator, "--output")
    decided(accelerator, lambda: refuse_foreign(folder))
    claim(drawing, folder / "drawing.json", seed=None)
    share = range(first, first + drawing.sampling.num_samples)
    decided(accelerator, lambda: clear_up(folder, {png_of(folder, seed).name for seed in share}))
    drawing.done = decided(
        accelerator,
        lambda: frozenset(seed - first for seed in share if is_there(png_of(folder, seed))),
    )
    on_all(accelerator, lambda: write_pngs(drawing, folder))


def png_of(folder: Path, seed: int) -> Path:
    """The file of the image of a seed."""
    return folder / f"{seed:08d}.png"


def is_there(path: Path) -> bool:
    """Whether a file has content; a machine that lost its power may leave an empty one."""
    return path.is_file() and path.stat().st_size > 0


def clear_up(folder: Path, names: set[str]) -> None:
    """Delete what a killed run wrote aside for files of these names, and for no other."""
    for path in list(folder.iterdir()):
        if target_of(path.name) in names or (path.suffix == ".partial" and f"{path.stem}.png" in names):
            path.unlink()


def refuse_foreign(folder: Path) -> None:
    """ValueError for a folder with images that were not drawn here."""
    if any(folder.glob("*.png")) and not (folder / "drawing.json").exists():
        raise ValueError(f"--output: {folder} holds images that were not drawn here; name another folder")


def write_pngs(drawing: Drawing, folder: Path) -> None:
    """Draw this process's share."""
    first = drawing.sampling.seed
    for index, images, _ in drawing:
        for i, image in zip(index.tolist(), images.permute(0, 2, 3, 1).numpy(), strict=True):
            with written(png_of(folder, first + i), sync=False) as file:
                Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="png")


def draw_to_array(drawing: Drawing, path: Path) -> None:
    """uint8 (N, H, W, C), put together by the main process when every process has written its share."""
    accelerator, n = drawing.accelerator, drawing.sampling.num_samples
    config = drawing.pipeline.network.config
    parts = Parts(
        path.with_name(f"{path.name}.parts"), (config.sample_size, config.sample_size, config.in_channels)
    )
    share_folder(parts.folder, accelerator, "--output")
    claim(drawing, parts.folder / "drawing.json", n=n)
    drawing.done = decided(accelerator, lambda: parts.begin(accelerator.num_processes))
    rows = on_all(accelerator, lambda: parts.write(drawing, accelerator.process_index))
    by_process = gather_object([rows])
    decided(accelerator, lambda: parts.assemble(path, n, by_process))


def draw_to_sheet(drawing: Drawing, path: Path) -> None:
    """One picture of all images, with a row for each class if there are classes; drawn to an array first."""
    array = path.with_name(f"{path.name}.npy")
    draw_to_array(drawing, array)

    def write() -> None:
        images = torch.from_numpy(np.load(array)).permute(0, 3, 1, 2)
        names = drawing.sampling.classes or drawing.pipeline.class_names
        with written(path) as file:
            sheet(images, points=draws_points(drawing.pipeline), class_names=names).save(file, format="png")
        array.unlink()

    decided(drawing.accelerator, write)


class Parts:
    """Images that were drawn, each with its row and a checksum, in a file of each process's own.

    One file that machines fill together through mapped pages may lose rows on a network disk. A file that one
    process writes, syncs and closes is whole for whoever opens it afterwards.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]):
        self.folder, self.shape = folder, shape
        self.record = np.dtype([("row", "<i8"), ("checksum", "<u4"), ("image", "u1", shape)])

    def file_of(self, rank: int) -> Path:
        """The file that a process writes."""
        return self.folder / f"process-{rank:05d}.part"

    def begin(self, world: int) -> frozenset[int]:
        """Make each process's file, without a half-written end; the rows that are there."""
        for path in [path for path in self.folder.iterdir() if target_of(path.name)]:
            path.unlink()
        for path in {*self.folder.glob("*.part"), *map(self.file_of, range(world))}:
            with naming(path), open(path, "ab") as file:
                file.truncate(file.tell() // self.record.itemsize * self.record.itemsize)
        return frozenset(row for row, _ in self.rows())

    def write(self, drawing: Drawing, rank: int) -> list[int]:
        """Draw this process's share into its file; the rows that were written."""
        rows: list[int] = []
        path = self.file_of(rank)
        with naming(path), open(path, "ab", buffering=0) as file:
            for index, images, _ in drawing:
                records = np.zeros(len(index), self.record)
                records["row"] = index.numpy()
                records["image"] = images.permute(0, 2, 3, 1).numpy()
                records["checksum"] = [_checksum(one) for one in records]
                write_all(file, records.tobytes())
                rows += index.tolist()
        sync_to_disk(path)
        return rows

    def rows(self) -> Iterator[tuple[int, np.ndarray]]:
        """Row and image of every whole record in any of the files."""
        for path in sorted(self.folder.glob("*.part")):
            with open(path, "rb") as file:
                while len(records := np.fromfile(file, self.record, READ_AT_ONCE)):
                    whole = (one for one in records if one["checksum"] == _checksum(one))
                    yield from ((int(one["row"]), one["image"]) for one in whole)

    def assemble(self, target: Path, n: int, by_process: list[list[int]]) -> None:
        """Write all n rows to `target` at once and delete the parts; ValueError if a row is missing.

        by_process: the rows that each process says it has written.
        """
        whole, missing = self.folder / target.name, set(range(n))
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *self.shape)}
        with written(whole) as file:  # in plain writes: through a memory map, a full disk kills the process
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            for row, image in self.rows():
                file.seek(start + row * image.size)
                file.write(image.tobytes())
                missing.discard(row)
            if missing:
                names = [
                    self.file_of(r).name for r, rows in enumerate(by_process) if missing.intersection(rows)
                ]
                raise ValueError(
                    f"--output: {len(missing)} of {n} images are missing from {self.folder}, such as number "
                    f"{min(missing)}; not whole: {', '.join(names) or 'files of an earlier run'}. Run the "
                    "same command again to draw them"
                )
        with naming(target):
            os.replace(whole, target)
        shutil.rmtree(self.folder)


def _checksum(record: np.void) -> int:
    return zlib.crc32(record["image"].tobytes(), int(record["row"]))
