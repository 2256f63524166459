"""Find picture files, and read those of any kind into 8-bit RGB."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps


class UnreadablePictureError(ValueError):
    """A picture is missing or damaged."""


SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# EXIF tag of the orientation, and its values that turn a picture by a quarter.
_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)

# What Pillow raises for a damaged file depends on its format and on where the damage is.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: str | Path | IO[bytes], apply_exif: bool) -> Image.Image:
    """Read a picture as RGB.

    Grayscale, palette and CMYK pictures are converted, transparency is dropped, 16-bit grayscale is scaled
    to 8 bit.

    Args:
        path: file, or one opened in binary mode.
        apply_exif: turn the picture upright as its EXIF data says; else its pixels stay as they are stored.

    Raises:
        UnreadablePictureError: if it is missing, is not a picture or is damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if apply_exif else image)
    except FileNotFoundError:
        raise UnreadablePictureError(f"there is no picture {path}") from None
    except _DAMAGED as error:
        raise UnreadablePictureError(f"{path} cannot be read as a picture: {error}") from error


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures in and below a folder, relative to it, by name."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if not path.name.startswith("._"))  # which macOS adds to archives


def picture_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels of a picture turned upright as its EXIF data says, from its header.

    Raises:
        UnreadablePictureError: if it is missing or is not a picture.
    """
    try:
        with Image.open(path) as image:
            is_turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
            return (image.width, image.height) if is_turned else (image.height, image.width)
    except FileNotFoundError:
        raise UnreadablePictureError(f"there is no picture {path}") from None
    except _DAMAGED as error:
        raise UnreadablePictureError(f"{path} cannot be read as a picture: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any Pillow mode to 8-bit RGB."""
    if image.mode.startswith("I"):  # 16 bit; Pillow's own conversion would cut everything above 255
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for before transparency is dropped
    return image if image.mode == "RGB" else image.convert("RGB")
