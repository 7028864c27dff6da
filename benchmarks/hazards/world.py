"""The good inputs that the campaign damages copies of: pictures, tables, runs, statistics, a cache."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hazards.runs import entry, run

DRAW = ("--sampler", "ddim", "--num_inference_steps", "4", "--num_samples", "16", "--batch_size", "8")
SCORE = ("--metrics", "energy", "--feature_extractor", "pixels", "--force")
"""Sampling, and a measurement, that take a second."""


@dataclass(frozen=True)
class World:
    """Paths of the good inputs."""

    path: Path

    @property
    def photos(self) -> Path:
        """48 pictures of 8x8 pixels in the folders `circle` and `square`."""
        return self.path / "photos"

    @property
    def table(self) -> Path:
        """A folder with the same pictures and labels in one parquet file."""
        return self.path / "table"

    @property
    def captioned(self) -> Path:
        """A folder with pictures and a metadata.csv that labels them."""
        return self.path / "captioned"

    @property
    def run(self) -> Path:
        """A trained model with checkpoints, results and a card."""
        return self.path / "run"

    @property
    def cache(self) -> Path:
        """What the runs have cached."""
        return self.path / "cache"

    @property
    def statistics(self) -> Path:
        """Reference statistics of the photos."""
        return self.path / "photos.safetensors"

    @property
    def image_file(self) -> Path:
        """16 images as uint8 in one .npy."""
        return self.path / "images.npy"

    def network(self) -> tuple[str, ...]:
        """Flags of a tiny run."""
        return (
            "--model_config_name_or_path", str(self.path / "tiny.json"), "--train_batch_size", "8",
            "--eval_batch_size", "4", "--ddpm_num_inference_steps", "4", "--logging_steps", "1",
            "--lr_warmup_steps", "0", "--validation_size", "8", "--cache_dir", str(self.cache),
        )  # fmt: skip

    def training(self) -> tuple[str, ...]:
        """Flags of the run that trained the model, without the folder and the number of steps."""
        return (
            *self.network(), "--train_data_dir", str(self.photos), "--checkpointing_steps", "2",
            "--eval_steps", "2", "--eval_num_samples", "8", "--eval_metrics", "energy",
            "--eval_feature_extractor", "pixels",
        )  # fmt: skip

    def scoring(self) -> tuple[str, ...]:
        """Flags that score the model against the photos."""
        return ("--reference", str(self.photos), "--cache_dir", str(self.cache), *DRAW, *SCORE)


def make(path: Path) -> World:
    """The good inputs in a folder; made once."""
    world, done = World(path), path / "done"
    if done.exists():
        return world
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    (path / "tiny.json").write_text(json.dumps(entry.TINY), encoding="utf-8")
    _photos(world)
    _must(world, "training/train_unconditional.py", *world.training(), "--output_dir", str(world.run),
          "--max_train_steps", "4")  # fmt: skip
    _must(world, "eval/evaluate.py", "--model", str(world.run), *world.scoring(),
          "--save_reference", str(world.statistics))  # fmt: skip
    _must(world, "model_cards/card.py", str(world.run))
    _must(world, "eval/generate.py", "--model", str(world.run), *DRAW, "--output", str(world.image_file))
    done.touch()
    return world


def _photos(world: World) -> None:
    import datasets

    rng = np.random.default_rng(0)
    grid = np.hypot(*np.mgrid[-3.5:4, -3.5:4])
    pictures, labels = [], []
    for number in range(48):
        name = ("circle", "square")[number % 2]
        shape = grid < 3 if name == "circle" else np.maximum(*np.abs(np.mgrid[-3.5:4, -3.5:4])) < 3
        picture = Image.fromarray((shape * 180 + rng.integers(0, 60, (8, 8))).astype(np.uint8))
        (world.photos / name).mkdir(parents=True, exist_ok=True)
        picture.save(world.photos / name / f"{number:02}.png")
        pictures.append(picture)
        labels.append(number % 2)
    world.table.mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["circle", "square"])}
    )
    table = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    table.to_parquet(world.table / "train-00000-of-00001.parquet")
    world.captioned.mkdir()
    lines = ["file_name,label"]
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        picture.save(world.captioned / f"{number:02}.png")
        lines.append(f"{number:02}.png,{label}")
    (world.captioned / "metadata.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")


def _must(world: World, script: str, *flags: str) -> None:
    outcome = run(script, flags, world.path)
    if outcome.code != 0:
        raise SystemExit(f"{script} failed on a good input:\n{outcome.output}")
