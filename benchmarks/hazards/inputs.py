"""Bad inputs of every kind: a copy of a good input is damaged, and a command meets it.

Each function makes one trial in an empty folder. What a run that accepts its input must give is known for
each: the value of the undamaged input, the images that Pillow reads, the number that was typed.
"""

import json
import math
import random
import shutil
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from hazards.damage import BITS, JSON, STRUCTURE, TEXT, damage, garbage, truncated
from hazards.runs import Outcome, Trial
from hazards.world import DRAW, SCORE, World

TRAIN, EVALUATE, GENERATE = "training/train_unconditional.py", "eval/evaluate.py", "eval/generate.py"
CARD, COMPARE = "model_cards/card.py", "eval/compare.py"


def pictures(world: World, folder: Path, rng: random.Random) -> Trial:
    """One picture is damaged or unusual; right: refused by name, or decoded as Pillow does."""
    photos = _copied(world.photos, folder)
    victim = rng.choice(sorted(photos.rglob("*.png")))
    what = rng.choice(PICTURES)(victim, rng)
    readable = _readable(victim)
    flags = (*world.network(), "--train_data_dir", str(photos), "--output_dir", str(folder / "out"))
    flags += ("--max_train_steps", "1", "--cache_dir", str(folder / "cache"))

    def wrong(outcome: Outcome) -> str | None:
        return None if readable else f"{victim.name} cannot be read, and was accepted"

    if rng.random() < 0.5:
        files = ("--images", str(photos), "--reference", str(world.photos), "--num_samples", "48", *SCORE)
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
        what = f"metadata.csv {damage(victim, (*TEXT, _another_file, _lines_missing), rng)}"
    flags = (*world.network(), "--train_data_dir", str(data), "--output_dir", str(folder / "out"))
    flags += ("--max_train_steps", "1", "--cache_dir", str(folder / "cache"))
    names = (victim.name, data.name)
    return Trial(what, TRAIN, flags, names, _trained_on_all, (data, folder / "out"))


def configurations(world: World, folder: Path, rng: random.Random) -> Trial:
    """A config.yaml is damaged; right: refused by name, or read as YAML reads it."""
    config = folder / "config.yaml"
    text = (world.run / "config.yaml").read_text(encoding="utf-8")
    config.write_text(text, encoding="utf-8")
    what = damage(config, (*TEXT, *YAML_DAMAGE), rng)
    flags = ("--config", str(config), "--dry_run", "--output_dir", str(folder / "out"))
    return Trial(
        what, TRAIN, flags, ("config.yaml", "--"), partial(_as_yaml, config), (config, folder / "out")
    )


def flags(world: World, folder: Path, rng: random.Random) -> Trial:
    """A flag with a value that nobody should type; right: refused by name, or taken as typed."""
    known = yaml.safe_load((world.run / "config.yaml").read_text(encoding="utf-8"))
    flag = rng.choice(sorted(known.keys() - {"config"}))
    value = rng.choice(TYPED)
    line = ("--dry_run", "--output_dir", str(folder / "out"), f"--{flag}={value}")

    def right(outcome: Outcome) -> str | None:
        resolved = yaml.safe_load(outcome.output).get(flag)
        return None if _same(resolved, value) else f"--{flag}={value!r} became {resolved!r}"

    return Trial(f"{flag}={value!r}", TRAIN, line, (f"--{flag}",), right, (folder / "out",))


def results(world: World, folder: Path, rng: random.Random) -> Trial:
    """A results.jsonl is damaged; right: refused by name, or whole lines stay and new ones are whole."""
    model = _copied(world.run, folder)
    file = model / "results.jsonl"
    what = damage(file, (*JSON, _torn_end, _torn_end), rng)
    damaged = file.read_bytes()
    if rng.random() < 0.4:
        line = (EVALUATE, "--model", str(model), *world.scoring())
        right = partial(_one_more_line, file, damaged)
    elif rng.random() < 0.5:
        line = (CARD, str(model))
        right = partial(_unchanged, file, damaged)
    else:
        line = (COMPARE, "--models", str(model), str(world.run), "--output_dir", str(folder / "out"))
        right = partial(_unchanged, file, damaged)
    return Trial(what, line[0], line[1:], ("results.jsonl",), right, (model, folder / "out"))


def statistics(world: World, folder: Path, rng: random.Random) -> Trial:
    """A file of reference statistics is damaged; right: refused by name, or the value of the whole file."""
    file = folder / "statistics.safetensors"
    shutil.copy(world.statistics, file)
    what = damage(file, BITS, rng)
    line = ("--model", str(world.run), *world.scoring(), "--output", str(folder / "r.jsonl"))
    line += ("--reference", str(file))
    expected = _last_value(world.run / "results.jsonl")
    right = partial(_same_value, folder / "r.jsonl", expected)
    return Trial(what, EVALUATE, line, (file.name,), right, (folder / "r.jsonl", file))


def image_files(world: World, folder: Path, rng: random.Random) -> Trial:
    """An .npy of images is damaged; right: refused by name, or as many images as Numpy reads."""
    file = folder / "images.npy"
    shutil.copy(world.image_file, file)
    what = damage(file, (*STRUCTURE, _promises_much), rng)
    line = ("--images", str(file), "--reference", str(world.photos), *SCORE, "--num_samples", "16")
    line += ("--output", str(folder / "r.jsonl"), "--cache_dir", str(world.cache))

    def right(outcome: Outcome) -> str | None:
        try:
            images = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError) as problem:
            return f"Numpy cannot read it: {problem}"
        return None if images.shape == (16, 8, 8, 1) and images.dtype == np.uint8 else "was accepted"

    return Trial(what, EVALUATE, line, (file.name,), right, (folder / "r.jsonl", file))


def models(world: World, folder: Path, rng: random.Random) -> Trial:
    """A file of a model folder is damaged; right: refused by name, or images that are finite and whole."""
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
    return Trial(what, GENERATE, line, names, partial(_whole_images, output), (model, output))


def caches(world: World, folder: Path, rng: random.Random) -> Trial:
    """A file of the cache is damaged; right: the value of the whole cache."""
    cache = _copied(world.cache, folder)
    victim = rng.choice(sorted(f for f in cache.rglob("*") if f.is_file() and f.suffix != ".lock"))
    what = f"{victim.suffix or victim.name} {damage(victim, JSON if victim.suffix == '.json' else BITS, rng)}"
    line = ("--model", str(world.run), *world.scoring(), "--cache_dir", str(cache))
    line += ("--output", str(folder / "r.jsonl"))
    expected = _last_value(world.run / "results.jsonl")
    right = partial(_same_value, folder / "r.jsonl", expected)
    return Trial(what, EVALUATE, line, (victim.name, victim.parent.name), right, (folder / "r.jsonl",))


def checkpoints(world: World, folder: Path, rng: random.Random) -> Trial:
    """A file of the newest checkpoint is damaged; right: an end with the weights of the uncut run."""
    model = _copied(world.run, folder)
    newest = max((model / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    victim = rng.choice(sorted(file for file in newest.rglob("*") if file.is_file()))
    what = f"{victim.name} {damage(victim, JSON if victim.suffix == '.json' else BITS, rng)}"
    line = (*world.training(), "--output_dir", str(model), "--max_train_steps", "4")
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    right = partial(_unchanged, model / weights, (world.run / weights).read_bytes())
    return Trial(what, TRAIN, line, (victim.name, newest.name), right, ())


# Pictures: each changes the file and returns what it did.


def _broken(path: Path, rng: random.Random) -> str:
    return damage(path, (truncated, truncated, garbage, *STRUCTURE), rng)


def _unusual(path: Path, rng: random.Random) -> str:
    mode = rng.choice(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"))
    form = rng.choice({"CMYK": ("JPEG", "TIFF"), "F": ("TIFF",)}.get(mode, ("PNG", "TIFF")))
    picture = Image.open(path)
    picture = picture.convert("L").convert(mode) if mode != "I;16" else picture.convert("I").convert("I;16")
    encoded = BytesIO()
    picture.save(encoded, form)
    path.write_bytes(encoded.getvalue())
    return f"{mode} {form}"


def _of_another_size(path: Path, rng: random.Random) -> str:
    size = rng.choice(((1, 1), (8, 1), (9, 8), (1000, 3), (200, 200)))
    Image.open(path).resize(size).save(path)
    return f"{size[0]}x{size[1]}"


def _bomb(path: Path, rng: random.Random) -> str:
    encoded = BytesIO()
    Image.new("1", (20_000, 20_000)).save(encoded, "PNG")
    path.write_bytes(encoded.getvalue())
    return "400 megapixels"


PICTURES = (_broken, _broken, _broken, _unusual, _unusual, _of_another_size, _bomb)


def _readable(path: Path) -> bool:
    """Whether Pillow decodes the whole picture without a warning that it is a bomb."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
                return False
            picture.load()
    except Exception:  # Pillow raises many kinds of error on a damaged file
        return False
    return True


# Damage that only one kind of file can have.


def _another_file(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b"07.png", rng.choice((b"../07.png", b"/etc/passwd", b"none.png", b"", b"08.png")))


def _lines_missing(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[: rng.randrange(1, len(lines))])


def _torn_end(data: bytes, rng: random.Random) -> bytes:
    return data[: -rng.randint(2, 40)]


def _promises_much(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b"(16, 8, 8, 1), ", b"(1600000, 80, 80, 1), ")[: len(data)]


def _twice(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines, rng.choice(lines)])


def _unknown_key(data: bytes, rng: random.Random) -> bytes:
    return data + b"no_such_flag: 1\n"


def _aliases(data: bytes, rng: random.Random) -> bytes:
    rows = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 30):
        rows.append(b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)))
    return data + b"\n".join(rows) + b"\n"


def _other_value(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = lines[place].partition(b":")[0] + b": " + rng.choice(TYPED).encode("utf-8", "replace")
    return b"\n".join([*lines, b""])


def _tabs(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b": ", b":\t", 1).replace(b"\n", b"\n\t", 1)


YAML_DAMAGE = (_twice, _unknown_key, _aliases, _tabs, *[_other_value] * 6)

TYPED = (
    "", " ", "abc", "-1", "0", "-0.0", "2.7", "1e400", "-1e400", "nan", "inf", "1e-400", "010", "1_000",
    "1:30", "0x10", "1.10", "no", "true", "None", "null", "~", "[]", "{}", "9" * 30, "é", "\u0661", "a b",
    "*x", "&x", "!!int 3", "../..", "/dev/null", "$(touch X)", "'", '"', "#", "%", "@", "`", "1,000", "--",
    "-",
)  # fmt: skip


# What an accepted input must have given.


def _copied(path: Path, folder: Path) -> Path:
    return Path(shutil.copytree(path, folder / path.name, symlinks=True))


def _last_value(file: Path) -> float:
    return json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["value"]


def _same_value(file: Path, expected: float, outcome: Outcome) -> str | None:
    value = _last_value(file)
    return None if math.isclose(value, expected, rel_tol=1e-6) else f"{value} instead of {expected}"


def _unchanged(file: Path, data: bytes, outcome: Outcome) -> str | None:
    return None if file.read_bytes() == data else f"{file.name} has other contents"


def _whole_images(file: Path, outcome: Outcome) -> str | None:
    images = np.load(file)
    return None if len(images) == 16 and images.dtype == np.uint8 else f"{images.shape} {images.dtype}"


def _one_more_line(file: Path, damaged: bytes, outcome: Outcome) -> str | None:
    now = file.read_bytes()
    if not now.startswith(damaged.rstrip(b"\n")):
        return "lines that were there are gone"
    try:
        json.loads(now.splitlines()[-1])
    except ValueError:
        return "the new line is not whole"
    return None


def _trained_on_all(outcome: Outcome) -> str | None:
    """48 pictures, 8 of them held out."""
    return None if "40 images of" in outcome.output else "trained on a part"


def _as_yaml(config: Path, outcome: Outcome) -> str | None:
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as problem:
        return f"is no YAML ({problem.__class__.__name__}), and was accepted"
    return None if isinstance(values, dict) else "holds no flags, and was accepted"


def _same(resolved: object, typed: str) -> bool:
    if isinstance(resolved, list):
        return all(_same(part, word) for part, word in zip(resolved, typed.split() or [typed], strict=False))
    if isinstance(resolved, bool):
        return typed.lower() in (("true",) if resolved else ("false", "no"))
    if isinstance(resolved, int | float):
        try:
            return float(typed) == resolved
        except ValueError:
            return False
    return str(resolved) == typed or (resolved is None and typed in ("", "None", "null"))


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
