"""What does `--preset own --minutes N` make of pictures that nobody tuned it for?

`python benchmarks/own_pictures.py --minutes 6 --cpu_threads 1`

Draws the data sets of SETS (shapes, letters in the fonts of matplotlib, crops of the photographs of
scikit-image where that is installed), trains a class-conditional model on each through the entry point,
scores it with and without guidance, and prints a table of markdown: what was chosen, CPU seconds, distance
over its floor, class accuracy. The folders stay in `--output_dir`, with their sheets `samples.png`.
"""

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import yaml
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
FINE = 8
"""Shapes are drawn this many times larger, then averaged, so that their edges are smooth."""
GUIDANCE = (1, 2)
SAMPLES = 500
PHOTOS = ("astronaut", "coffee", "brick", "grass", "camera", "rocket")

Draw = Callable[[str, int, random.Random], Image.Image]
"""(class, side in pixels, random numbers) -> a picture."""


def shape(name: str, side: int, rng: random.Random) -> Image.Image:
    """A light shape of any colour on a dark ground of any colour, moved, scaled and turned a little."""
    large = side * FINE
    ground, colour = (tuple(rng.randint(*ends) for _ in range(3)) for ends in ((0, 90), (130, 255)))
    picture = Image.new("RGB", (large, large), ground)
    radius, turn = large * rng.uniform(0.25, 0.38), rng.uniform(-0.25, 0.25)
    x, y = (large * (0.5 + rng.uniform(-0.1, 0.1)) for _ in range(2))

    def polygon(corners: int, radius: float, turn: float, inner: float = 1.0) -> None:
        points = []
        for corner in range(corners):
            angle = turn + 2 * math.pi * corner / corners
            reach = radius * (inner if corner % 2 else 1.0)
            points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        ImageDraw.Draw(picture).polygon(points, fill=colour)

    match name:
        case "circle":
            polygon(60, radius, 0)
        case "square":
            polygon(4, 1.1 * radius, math.pi / 4 + turn)
        case "triangle":
            polygon(3, 1.15 * radius, turn - math.pi / 2)
        case "star":
            polygon(10, 1.2 * radius, turn - math.pi / 2, inner=0.4)
    return picture.resize((side, side), Image.Resampling.BOX)


def letter(name: str, side: int, rng: random.Random) -> Image.Image:
    """A letter, white on black, in one of matplotlib's fonts."""
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    file = rng.choice([file for file in sorted(fonts.glob("DejaVuS*.ttf")) if "Display" not in file.name])
    font = ImageFont.truetype(file, round(side * rng.uniform(0.6, 0.85)))
    picture = Image.new("L", (side, side))
    place = tuple(side * (0.5 + rng.uniform(-0.06, 0.06)) for _ in range(2))
    ImageDraw.Draw(picture).text(place, name, fill=255, font=font, anchor="mm")
    return picture


def photo(name: str, side: int, rng: random.Random) -> Image.Image:
    """A crop of a photograph, between a third and all of its height."""
    from skimage import data

    whole = Image.fromarray(getattr(data, name)()).convert("RGB")
    cut = int(min(whole.size) * rng.uniform(1 / 3, 1))
    left, top = (rng.randint(0, length - cut) for length in whole.size)
    return whole.crop((left, top, left + cut, top + cut)).resize((side, side), Image.Resampling.BOX)


class Pictures(NamedTuple):
    """A data set: how many pictures, of which side and classes, in colour or grey."""

    draw: Draw
    classes: tuple[str, ...]
    count: int
    side: int
    mode: str = "RGB"


SHAPES = ("circle", "square", "triangle", "star")
SETS = {
    "shapes-16": Pictures(shape, SHAPES, 3_000, 16),
    "shapes-8-grey": Pictures(shape, SHAPES, 200, 8, "L"),
    "letters-28": Pictures(letter, tuple("ABCDEFGHIJ"), 60_000, 28, "L"),
    "shapes-64": Pictures(shape, SHAPES, 1_000, 64),
    "photos-32": Pictures(photo, PHOTOS, 3_000, 32),
    "photos-64": Pictures(photo, PHOTOS, 3_000, 64),
}


def write(folder: Path, pictures: Pictures, seed: int) -> None:
    """Write a data set as class folders; the same pictures for the same seed."""
    rng = random.Random(seed)
    for name in pictures.classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(pictures.count):
        name = pictures.classes[number % len(pictures.classes)]
        picture = pictures.draw(name, pictures.side, rng).convert(pictures.mode)
        picture.save(folder / name / f"{number:05}.png")


def run(*command: object) -> float:
    """Run an entry point; CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train_and_score(name: str, options: argparse.Namespace) -> str:
    """The row of the table of a data set."""
    pictures, folder = SETS[name], options.output_dir / name
    data, model = folder / "pictures", folder / "model"
    if not data.is_dir():
        write(data, pictures, options.seed)
    machine = ["--cpu_threads", options.cpu_threads, "--cache_dir", options.output_dir / "cache"]
    seconds = run(
        "training/train_class_conditional.py", "--preset", "own", "--minutes", options.minutes, "--seed",
        options.seed, "--train_data_dir", data, "--output_dir", model, *machine,
    )  # fmt: skip
    for scale in GUIDANCE:
        run(
            "eval/evaluate.py", "--model", model, "--num_samples", SAMPLES, "--guidance_scale", scale,
            "--sampler", "dpmsolver++", "--num_inference_steps", 20, "--feature_extractor", "classifier",
            "--metrics", "fd", "class_accuracy", "--force", *machine,
        )  # fmt: skip
    config = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (model / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    steps, batch = config["max_train_steps"], config["train_batch_size"]
    cells = [name, f"{pictures.count:,}", f"`{config['net']}`", f"{steps:,} of {batch}", f"{seconds:.0f}"]
    for scale in GUIDANCE:
        guided = {line["measure"]: line for line in lines if (line["guidance_scale"] or 1) == scale}
        distance = guided["fd"]
        cells += [f"{distance['value']:.3g} ({distance['floor']:.3g})"]
        cells += [f"{guided['class_accuracy']['value']:.1%}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table, a row as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu_threads", type=int, default=1)
    parser.add_argument("--output_dir", type=lambda text: Path(text).absolute(), default=Path("own_pictures"))
    options = parser.parse_args()
    heads = ["pictures", "n", "network", "steps", "CPU seconds"]
    for scale in GUIDANCE:
        heads += [f"`fd_classifier` (floor), guidance {scale}", f"class accuracy, guidance {scale}"]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name in options.sets:
        rows.append(train_and_score(name, options))
        (options.output_dir / "own_pictures.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
