"""What a picture becomes: uint8 pixels of one size and 1 or 3 channels.

A model sees square images of one size with 1 or 3 channels. `to_pixels` brings any picture there: its EXIF
orientation is applied, a transparent one is laid on white, 16-bit grey is scaled to 8 bits by rounding v /
257, palette, CMYK, 1-bit and the rest are converted by Pillow (which reads 16-bit *colour* PNG as its upper 8
bits). The short side is then resized to the resolution by Pillow's bilinear filter, which is antialiased and
the one that diffusers' `train_unconditional.py` uses, and the centre is cropped. A picture that has the right
size already is not resampled: its pixels stay as they are.
"""

import io
import os
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

VERSION = 2
"""To be raised when `to_pixels` gives other pixels than before."""

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}
UNREADABLE = {
    ".heic": "HEIC", ".heif": "HEIF", ".hif": "HEIF", ".avif": "AVIF", ".avifs": "AVIF", ".jxl": "JPEG XL",
    ".webp": "WebP", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000",
    ".dng": "raw", ".cr2": "raw", ".cr3": "raw", ".nef": "raw", ".arw": "raw", ".raf": "raw", ".orf": "raw",
    ".rw2": "raw",
}  # fmt: skip
"""Suffixes of images that need a codec which not every Pillow has."""
SEVERAL = {"GIF", "TIFF", "PNG", "WEBP", "AVIF"}
"""Formats whose files may hold several pictures that are data."""
GREY_STEPS = {"L;2": 255 // 3, "L;4": 255 // 15}
"""How PNG stores grey levels of 2 and 4 bits -> what Pillow multiplies them by."""


def open_picture(encoded: Image.Image | dict | None) -> Image.Image:
    """A picture from {"bytes", "path"}; ValueError that says why it is none."""
    if isinstance(encoded, Image.Image):
        return encoded
    if encoded is None:
        raise ValueError("there is no image in this row")
    path = encoded["path"] or ""
    codec = UNREADABLE.get(os.path.splitext(path)[1].lower())
    if codec == "raw":  # Pillow would open the small preview that many of them hold
        raise ValueError("a raw file of a camera; convert it to PNG or JPEG")
    data = encoded["bytes"] if encoded["bytes"] is not None else Path(path).read_bytes()
    try:
        return colour_key_as_alpha(Image.open(io.BytesIO(data)))
    except UnidentifiedImageError:  # whose message has only the address of the buffer
        missing = f"; it has no codec for {codec} here: convert it to PNG" if codec else ""
        version = PIL.__version__
        raise ValueError(
            f"not an image that Pillow can read ({len(data)} bytes, Pillow {version}){missing}"
        ) from None


def to_pixels(image: Image.Image, channels: int, resolution: int) -> np.ndarray:
    """A picture of any mode and size -> uint8 (channels, resolution, resolution); see the top of the file."""
    image = ImageOps.exif_transpose(colour_key_as_alpha(image))
    image = _eight_bits(image).convert("L" if channels == 1 else "RGB")
    short = min(image.size)
    if short != resolution:
        size = [max(resolution, round(side * resolution / short)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = ((side - resolution) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + resolution, top + resolution)))
    return pixels.reshape(resolution, resolution, channels).transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An opaque picture with 8 bits a channel."""
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"integer pixels {values.min()}..{values.max()} exceed 16 bits; save it with 8 or 16"
            )
        values = np.where(values == image.info.get("transparency", -1), 65535, values)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "RGBA", "PA", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image


def colour_key_as_alpha(image: Image.Image) -> Image.Image:
    """The transparent colour of a PNG (tRNS) as an alpha channel, where Pillow's 8 bits would miss it.

    The key has the file's own number of bits: Pillow compares it with grey levels of 2 and 4 bits that it has
    scaled to 8, and with the upper 8 of 16 bits of colour. Only a picture that is not loaded yet knows them.
    """
    if not isinstance(image, PngImageFile) or "transparency" not in image.info:
        return image
    key, stored = image.info["transparency"], raw_mode(image)
    if stored in GREY_STEPS:
        hidden = np.asarray(image) == key * GREY_STEPS[stored]
    elif stored == "RGB;16B":
        lower = Image.open(image.fp)
        # PNG has the upper byte first. Read as if it were the lower one, it is left out instead.
        lower.tile = [(*lower.tile[0][:3], "RGB;16L")]
        lower = np.asarray(lower).astype(np.uint16)
        hidden = (np.asarray(image) * np.uint16(256) + lower == np.array(key, np.uint16)).all(-1)
    else:
        return image
    opaque = image.copy()
    del opaque.info["transparency"]
    opaque.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    return opaque


def raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, such as RGB;16B; '' once they are loaded, or where nothing says it."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return ""
    stored = image.tile[0][3]
    stored = stored[0] if isinstance(stored, tuple) and stored else stored
    return stored if isinstance(stored, str) else ""


def brightest_of_16_bits(image: Image.Image, stored: str) -> int | None:
    """The largest value of a loaded picture whose `raw_mode` was `stored`; None where it has no 16 bits."""
    if image.mode.startswith("I"):
        return int(np.asarray(image).max())
    if ";16" in stored and image.mode in ("RGB", "RGBA", "LA"):  # of which Pillow has kept the upper bytes
        colours = np.asarray(image)[..., : -1 if image.mode.endswith("A") else None]
        return int(colours.max()) * 256 + 255
    return None


def in_words(shape: tuple[int, ...], classes: int | None, points: bool) -> str:
    """What images (C, H, W) look like, and their labels: '16x16 RGB, labels of 2 classes'."""
    channels, side = shape[:2]
    size = "points of the plane" if points else f"{side}x{side} {'grey' if channels == 1 else 'RGB'}"
    return f"{size}, {'no labels' if classes is None else f'labels of {classes} classes'}"
