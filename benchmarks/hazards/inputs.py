"""Bad inputs of every kind: a copy of a good input is damaged, and a command meets it.

Each function makes one trial in an empty folder. What a run that accepts its input must give is known for
each: the value of the undamaged input, the images that Pillow reads, the number that was typed.
"""

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from hazards.damage import (
    BITS,
    JSON,
    STRUCTURE,
    TEXT,
    TYPED,
    YAML,
    another_file,
    damage,
    lines_missing,
    promises_much,
    torn_end,
)
from hazards.pictures import PICTURES, readable
from hazards.right import (
    as_yaml,
    last_value,
    one_more_line,
    same,
    same_value,
    trained_on_all,
    unchanged,
    whole_images,
)
from hazards.runs import Outcome, Trial
from hazards.world import DRAW, SCORE, World

TRAIN, EVALUATE, GENERATE = "training/train_unconditional.py", "eval/evaluate.py", "eval/generate.py"
CARD, COMPARE = "model_cards/card.py", "eval/compare.py"


def pictures(world: World, folder: Path, rng: random.Random) -> Trial:
    """One picture is damaged or unusual. Right: refused by name, or decoded as Pillow does."""
    photos = _copied(world.photos, folder)
    victim = rng.choice(sorted(photos.rglob("*.png")))
    what = rng.choice(PICTURES)(victim, rng)
    can_be_read = readable(victim)
    flags = (*world.network(), "--train_data_dir", str(photos), "--output_dir", str(folder / "out"))
    flags += ("--max_train_steps", "1", "--cache_dir", str(folder / "cache"))

    def wrong(outcome: Outcome) -> str | None:
        return None if can_be_read else f"{victim.name} cannot be read, and was accepted"

    if rng.random() < 0.5:
        files = ("--images", str(photos), "--reference", str(world.photos), *SCORE)
        flags = (*files, "--output", str(folder / "r.jsonl"), "--cache_dir", str(folder / "cache"))
        return Trial(what, EVALUATE, flags, (victim.name,), wrong, (photos, folder / "r.jsonl"))
    return Trial(what, TRAIN, flags, (victim.name,), wrong, (photos, folder / "out"))


def tables(world: World, folder: Path, rng: random.Random) -> Trial:
    """A parquet file, or a folder with metadata.csv, is damaged."""
    if rng.random() < 0.5:
        data = _copied(world.table, folder)
        victim = next(data.glob("*.parquet"))
        what = f"parquet {damage(victim, STRUCTURE, rng)}"
    else:
        data = _copied(world.captioned, folder)
        victim = data / "metadata.csv"
        what = f"metadata.csv {damage(victim, (*TEXT, another_file, lines_missing), rng)}"
    flags = (*world.network(), "--train_data_dir", str(data), "--output_dir", str(folder / "out"))
    flags += ("--max_train_steps", "1", "--cache_dir", str(folder / "cache"))
    names = (victim.name, data.name)
    return Trial(what, TRAIN, flags, names, trained_on_all, (data, folder / "out"))


def configurations(world: World, folder: Path, rng: random.Random) -> Trial:
    """A config.yaml is damaged. Right: refused by name, or read as YAML reads it."""
    config = folder / "config.yaml"
    text = (world.run / "config.yaml").read_text(encoding="utf-8")
    config.write_text(text, encoding="utf-8")
    what = damage(config, YAML, rng)
    flags = ("--config", str(config), "--dry_run", "--output_dir", str(folder / "out"))
    return Trial(
        what, TRAIN, flags, ("config.yaml", "--"), partial(as_yaml, config), (config, folder / "out")
    )


def flags(world: World, folder: Path, rng: random.Random) -> Trial:
    """A flag with a value that nobody should type. Right: refused by name, or taken as typed."""
    known = yaml.safe_load((world.run / "config.yaml").read_text(encoding="utf-8"))
    flag = rng.choice(sorted(known.keys() - {"config"}))
    value = rng.choice(TYPED)
    line = ("--dry_run", "--output_dir", str(folder / "out"), f"--{flag}={value}")

    def right(outcome: Outcome) -> str | None:
        printed = outcome.output.partition("\ndata: ")[0]  # flags; what data tell of them follows
        resolved = yaml.safe_load(printed).get(flag)
        return None if same(resolved, value) else f"--{flag}={value!r} became {resolved!r}"

    return Trial(f"{flag}={value!r}", TRAIN, line, (f"--{flag}",), right, (folder / "out",))


def results(world: World, folder: Path, rng: random.Random) -> Trial:
    """A results.jsonl is damaged. Right: refused by name, or whole lines stay and new ones are whole."""
    model = _copied(world.run, folder)
    file = model / "results.jsonl"
    what = damage(file, (*JSON, torn_end, torn_end), rng)
    damaged = file.read_bytes()
    if rng.random() < 0.4:
        line = (EVALUATE, "--model", str(model), *world.scoring())
        right = partial(one_more_line, file, damaged)
    elif rng.random() < 0.5:
        line = (CARD, str(model))
        right = partial(unchanged, file, damaged)
    else:
        line = (COMPARE, "--models", str(model), str(world.run), "--output_dir", str(folder / "out"))
        right = partial(unchanged, file, damaged)
    return Trial(what, line[0], line[1:], ("results.jsonl",), right, (model, folder / "out"))


def statistics(world: World, folder: Path, rng: random.Random) -> Trial:
    """A file of reference statistics is damaged. Right: refused by name, or the value of the whole file."""
    file = folder / "statistics.safetensors"
    shutil.copy(world.statistics, file)
    what = damage(file, BITS, rng)
    line = ("--model", str(world.run), *world.scoring(), "--output", str(folder / "r.jsonl"))
    line += ("--reference", str(file))
    expected = last_value(world.run / "results.jsonl")
    right = partial(same_value, folder / "r.jsonl", expected)
    return Trial(what, EVALUATE, line, (file.name,), right, (folder / "r.jsonl", file))


def image_files(world: World, folder: Path, rng: random.Random) -> Trial:
    """A file of images (.npy) is damaged. Right: refused by name, or read as Numpy reads it."""
    file = folder / "images.npy"
    shutil.copy(world.image_file, file)
    what = damage(file, (*STRUCTURE, promises_much), rng)
    line = ("--images", str(file), "--reference", str(world.photos), *SCORE)
    line += ("--output", str(folder / "r.jsonl"), "--cache_dir", str(world.cache))

    def right(outcome: Outcome) -> str | None:
        try:
            images = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError) as problem:
            return f"Numpy cannot read it: {problem}"
        return None if images.shape == (16, 8, 8, 1) and images.dtype == np.uint8 else "was accepted"

    return Trial(what, EVALUATE, line, (file.name,), right, (folder / "r.jsonl", file))


def models(world: World, folder: Path, rng: random.Random) -> Trial:
    """A file of a model folder is damaged. Right: refused by name, or images that are finite and whole."""
    model = _copied(world.run, folder)
    file = rng.choice([
        model / "model_index.json", model / "unet" / "config.json", model / "run.json", model / "config.yaml",
        model / "scheduler" / "scheduler_config.json", model / "unet" / "diffusion_pytorch_model.safetensors",
    ])  # fmt: skip
    what = f"{file.name} {damage(file, {'.json': JSON, '.yaml': TEXT}.get(file.suffix, STRUCTURE[:3]), rng)}"
    output = folder / "drawn.npy"
    names = (file.name, str(model))
    if rng.random() < 0.3:
        return Trial(what, CARD, (str(model),), names, lambda outcome: None, (model,))
    line = ("--model", str(model), *DRAW, "--output", str(output))
    return Trial(what, GENERATE, line, names, partial(whole_images, output), (model, output))


def caches(world: World, folder: Path, rng: random.Random) -> Trial:
    """A file of the cache is damaged. Right: the value of the whole cache."""
    cache = _copied(world.cache, folder)
    victim = rng.choice(sorted(f for f in cache.rglob("*") if f.is_file() and f.suffix != ".lock"))
    what = f"{victim.suffix or victim.name} {damage(victim, JSON if victim.suffix == '.json' else BITS, rng)}"
    line = ("--model", str(world.run), *world.scoring(), "--cache_dir", str(cache))
    line += ("--output", str(folder / "r.jsonl"))
    expected = last_value(world.run / "results.jsonl")
    right = partial(same_value, folder / "r.jsonl", expected)
    return Trial(what, EVALUATE, line, (victim.name, victim.parent.name), right, (folder / "r.jsonl",))


def checkpoints(world: World, folder: Path, rng: random.Random) -> Trial:
    """A file of the newest checkpoint is damaged. Right: an end with the weights of the uncut run."""
    model = _copied(world.run, folder)
    newest = max((model / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    victim = rng.choice(sorted(file for file in newest.rglob("*") if file.is_file()))
    what = f"{victim.name} {damage(victim, JSON if victim.suffix == '.json' else BITS, rng)}"
    line = (*world.training(), "--output_dir", str(model), "--max_train_steps", "4")
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    right = partial(unchanged, model / weights, (world.run / weights).read_bytes())
    return Trial(what, TRAIN, line, (victim.name, newest.name), right, ())


def _copied(path: Path, folder: Path) -> Path:
    return Path(shutil.copytree(path, folder / path.name, symlinks=True))


Kind = Callable[[World, Path, random.Random], Trial]

KINDS: dict[str, tuple[Kind, int]] = {
    "pictures": (pictures, 18),
    "tables": (tables, 8),
    "configurations": (configurations, 14),
    "flags": (flags, 16),
    "results": (results, 12),
    "statistics": (statistics, 6),
    "image files": (image_files, 6),
    "models": (models, 10),
    "caches": (caches, 6),
    "checkpoints": (checkpoints, 4),
}
"""Kind -> what makes a trial, and its share in a campaign."""
