"""What a run that accepts its input must have given. Each check returns what is wrong, or None."""

import json
import math
from pathlib import Path

import numpy as np
import yaml

from hazards.runs import Outcome


def last_value(file: Path) -> float:
    """The value of the last line of a results file."""
    return json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["value"]


def same_value(file: Path, expected: float, outcome: Outcome) -> str | None:
    """Whether the last value is the one of the undamaged input."""
    value = last_value(file)
    return None if math.isclose(value, expected, rel_tol=1e-6) else f"{value} instead of {expected}"


def unchanged(file: Path, data: bytes, outcome: Outcome) -> str | None:
    """Whether a file still has these contents."""
    return None if file.read_bytes() == data else f"{file.name} has other contents"


def whole_images(file: Path, outcome: Outcome) -> str | None:
    """Whether 16 images were drawn."""
    images = np.load(file)
    return None if len(images) == 16 and images.dtype == np.uint8 else f"{images.shape} {images.dtype}"


def one_more_line(file: Path, damaged: bytes, outcome: Outcome) -> str | None:
    """Whether the lines that were there are still there, and the new one is whole."""
    now = file.read_bytes()
    if not now.startswith(damaged.rstrip(b"\n")):
        return "lines that were there are gone"
    try:
        json.loads(now.splitlines()[-1])
    except ValueError:
        return "the new line is not whole"
    return None


def trained_on_all(outcome: Outcome) -> str | None:
    """48 pictures, 8 of them held out."""
    return None if "40 images of" in outcome.output else "trained on a part"


def as_yaml(config: Path, outcome: Outcome) -> str | None:
    """Whether a YAML parser reads the file, too, and finds a mapping."""
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as problem:
        return f"is no YAML ({problem.__class__.__name__}), and was accepted"
    return None if isinstance(values, dict) else "holds no flags, and was accepted"


def same(resolved: object, typed: str) -> bool:
    """Whether a resolved value is the one that was typed."""
    if isinstance(resolved, list):
        return len(resolved) == 1 and same(resolved[0], typed)
    if isinstance(resolved, bool):
        return typed.lower() in (("true",) if resolved else ("false", "no"))
    if isinstance(resolved, int | float):
        try:
            return type(resolved)(typed) == resolved
        except ValueError:
            return False
    return str(resolved) == typed or (resolved is None and typed in ("", "None", "null"))
