"""Pictures that are damaged or unusual. Each function changes a file and returns what it did."""

import random
from io import BytesIO
from pathlib import Path

from PIL import Image

from hazards.damage import STRUCTURE, damage, garbage, truncated


def broken(path: Path, rng: random.Random) -> str:
    """The file is damaged."""
    return damage(path, (truncated, truncated, garbage, *STRUCTURE), rng)


def unusual(path: Path, rng: random.Random) -> str:
    """The same picture in another mode and format, which Pillow can read."""
    mode = rng.choice(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"))
    form = rng.choice({"CMYK": ("JPEG", "TIFF"), "F": ("TIFF",)}.get(mode, ("PNG", "TIFF")))
    picture = Image.open(path)
    picture = picture.convert("L").convert(mode) if mode != "I;16" else picture.convert("I").convert("I;16")
    encoded = BytesIO()
    picture.save(encoded, form)
    path.write_bytes(encoded.getvalue())
    return f"{mode} {form}"


def of_another_size(path: Path, rng: random.Random) -> str:
    """The picture has another size."""
    size = rng.choice(((1, 1), (8, 1), (9, 8), (1000, 3), (200, 200)))
    Image.open(path).resize(size).save(path)
    return f"{size[0]}x{size[1]}"


def bomb(path: Path, rng: random.Random) -> str:
    """A picture of 400 megapixels in a file of 50 kB."""
    encoded = BytesIO()
    Image.new("1", (20_000, 20_000)).save(encoded, "PNG")
    path.write_bytes(encoded.getvalue())
    return "400 megapixels"


PICTURES = (broken, broken, broken, unusual, unusual, of_another_size, bomb)


def readable(path: Path) -> bool:
    """Whether Pillow decodes the whole picture without a warning that it is a bomb."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
                return False
            picture.load()
    except Exception:  # Pillow raises many kinds of error on a damaged file
        return False
    return True
