"""List image files, and read them as 8-bit RGB.

Functions that open a file raise UnreadableImageError if it is missing, damaged or not an image.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from atss_core.data.folders import files_below
from atss_core.utils.files import check_regular
from atss_core.utils.text import printable


class UnreadableImageError(ValueError):
    """An image is missing, damaged or too large, or has values outside the range of colours."""


SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# The default of INPUT.MAX_PIXELS; 600 MB as RGB.
MAX_PIXELS = 200_000_000

# Tags of TIFF and EXIF, and the transposition of each orientation from stored to upright pixels, and back.
_WIDTH, _HEIGHT, _ORIENTATION = 256, 257, 274
_QUARTER_TURNS = (5, 6, 7, 8)
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TO_STORED = _TO_UPRIGHT | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

_BITS = "grey bits"  # key in ``info`` of an image scaled to 8 bits: original bits, 0 for floats in 0..1
_CAMERA_BITS = (8, 10, 12, 14, 16)  # of sensors; the files have 16
_BITS_PER_SAMPLE = 258  # of TIFF
_LONGEST_NAME = 1000  # characters of a path in a message
_TOLERANCE = 1e-3  # interpolation leaves 0..1 by rounding errors


def read_image(
    path: str | Path | IO[bytes], apply_exif: bool, max_pixels: int = MAX_PIXELS, grey_bits: int = 0
) -> Image.Image:
    """Read an image as RGB.

    Args:
        path: file, or an open binary file, such as ``io.BytesIO``.
        apply_exif: turn the image upright as its EXIF data says; else its pixels stay as they are stored.
        max_pixels: larger images are refused.
        grey_bits: as for ``to_rgb``, which converts other modes.
    """
    with _opened(path) as image:
        if image.width * image.height > max_pixels:
            raise UnreadableImageError(
                f"{_name_of(path)}: expected at most {max_pixels} pixels (INPUT.MAX_PIXELS), got"
                f" {image.width}x{image.height}. Cut it into tiles, or raise INPUT.MAX_PIXELS"
            )
        turns = _TO_UPRIGHT if apply_exif else _TO_STORED
        is_turned = image.format == "TIFF"  # Pillow turns these upright by itself
        turn = turns.get(_orientation(image)) if apply_exif != is_turned else None
        image.load()
        rgb = to_rgb(image, grey_bits)
        if turn is None:
            return rgb
        turned = rgb.transpose(turn)  # without its EXIF data, which would turn it once more
        turned.info = {key: value for key, value in rgb.info.items() if key == _BITS}
        return turned


def list_images(folder: Path) -> list[Path]:
    """Return the images in and below a folder and what it links to, relative to it, by name."""
    paths = (path.relative_to(folder) for path in files_below(folder) if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in paths if not path.name.startswith("._"))  # added to archives by macOS


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels of an image turned upright as its EXIF data says, from its header."""
    with _opened(path) as image:
        width, height = _stored_size(image)
        return (width, height) if _orientation(image) in _QUARTER_TURNS else (height, width)


def has_ambiguous_orientation(path: Path) -> bool:
    """Return whether EXIF data turn or flip an image but keep its size, from its header.

    Annotations of that size may be for the stored or for the upright image.
    """
    with _opened(path) as image:
        width, height = _stored_size(image)
        orientation = _orientation(image)
        return orientation in _TO_UPRIGHT and (width == height or orientation not in _QUARTER_TURNS)


def has_grey_bits(path: Path) -> bool:
    """Return whether an image has grey values of more than 8 bits, from its header."""
    with _opened(path) as image:
        return image.mode[0] in "IF"


def to_rgb(image: Image.Image, grey_bits: int = 0) -> Image.Image:
    """Convert an image of any Pillow mode to 8-bit RGB.

    Transparency is dropped. Grey values of more than 8 bits keep the upper 8 of ``grey_bits``, and larger
    values become 255. With ``grey_bits=0`` the file defines the range: its stored bits, mostly 16, or floats
    in 0..1. The brightness of the image never counts, because one hot pixel would change all others.

    Raises:
        ValueError: if grey values are negative or NaN; or, without ``grey_bits``, if floats are beyond 1, or
            integers of 32 bits beyond 255.
    """
    if image.mode[0] in "IF":  # Pillow's own conversion would cut everything above 255
        bits = grey_bits or _stored_bits(image)
        image = Image.fromarray(_to_8_bits(np.asarray(image), bits))
        image.info[_BITS] = bits
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for before transparency is dropped
    return image if image.mode == "RGB" else image.convert("RGB")


def describe_unused_range(images: Iterable[Image.Image]) -> str | None:
    """Describe how many bits images scaled to 8 bits use, if they are fewer by two or more; else None.

    Ignores the brightest thousandth of the pixels of each image.
    """
    ranges = [
        (bits, bits - 8 + int(np.quantile(np.asarray(image)[..., 0], 0.999)).bit_length())
        for image in images
        if (bits := image.info.get(_BITS))
    ]
    stored, used = (max(values) for values in zip(*ranges, strict=True)) if ranges else (0, 0)
    if used > stored - 2:
        return None
    camera = next((bits for bits in _CAMERA_BITS if bits >= used), used)
    return (
        f"grey values of {stored} bits use {used} and are dark: if the camera has {camera} bits, set"
        f" INPUT.GREY_BITS {camera}, in training and wherever its weights are used"
    )


def _stored_bits(image: Image.Image) -> int:
    """Return the bits of a grey value in the file, 0 for floats and 32-bit integers without a known range."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return 0
    tags = getattr(image, "tag_v2", {})  # of TIFF, which may store 12 bits
    return tags.get(_BITS_PER_SAMPLE, (16,))[0]


def _to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    low, high, is_float = values.min(), values.max(), values.dtype.kind == "f"
    if bits and low >= 0 and high < np.inf:  # False for NaN
        upper = values // 2.0 ** (bits - 8) if is_float else values >> (bits - 8)
        return np.minimum(upper, 255).astype(np.uint8)
    if not bits and not is_float and low >= 0 and high <= 255:
        return values.astype(np.uint8)
    if not bits and is_float and low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
        return (values.clip(0, 1) * 255).round().astype(np.uint8)
    expected = "grey values from 0" if bits else "grey values that are floats in 0..1 or integers in 0..255"
    remedy = "Convert" if bits else "Set INPUT.GREY_BITS to the bits of the camera (8 for 0..255), or convert"
    raise ValueError(f"expected {expected}, got {low:.6g}..{high:.6g}. {remedy} it to 8 bits")


class _PillowLimit:
    """Lift Pillow's own limit of pixels while images are read here, by any number of threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._num_readers = 0
        if hasattr(os, "register_at_fork"):  # a process forked while the lock is held would wait forever
            release = self._lock.release
            os.register_at_fork(before=self._lock.acquire, after_in_parent=release, after_in_child=release)

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_readers:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._num_readers += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_readers -= 1
            if not self._num_readers:
                Image.MAX_IMAGE_PIXELS = self._limit


_limit_lifted = _PillowLimit()


@contextmanager
def _opened(path: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image file; raise all errors, also those of the block, as UnreadableImageError."""
    try:
        if isinstance(path, (str, Path)):
            check_regular(Path(path))
        with _limit_lifted, Image.open(path) as image:
            if 0 in image.size:
                raise ValueError(f"it has {image.width}x{image.height} pixels")
            yield image
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        reason = "" if error.errno == errno.ENOENT else f" ({error.strerror})"  # such as a loop of links
        raise UnreadableImageError(f"there is no image {_name_of(path)}{reason}") from None
    except Exception as error:  # the decoders raise any type, by format and damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"{_name_of(path)} cannot be read as an image: {reason}") from error


def _name_of(path: str | Path | IO[bytes]) -> str:
    name = path if isinstance(path, (str, Path)) else getattr(path, "name", "data in memory")
    return printable(str(name)[:_LONGEST_NAME])


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) if there is none or the EXIF data are damaged.

    Decodes no pixels, unlike Pillow's own method, which looks for EXIF data behind those of PNG files.
    """
    try:
        if isinstance(image, PngImageFile) and image.fp and "exif" not in image.info:
            image.info.update(_exif_of_png(image.fp))
        return Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # as Pillow's decoders do
        return 1


def _exif_of_png(file: IO[bytes]) -> dict[str, bytes]:
    """Return the eXIf chunk of an open PNG file as "exif", or nothing; its position stays."""
    position = file.tell()
    file.seek(8)
    chunks: dict[str, bytes] = {}
    while not chunks and len(header := file.read(8)) == 8:
        length = int.from_bytes(header[:4], "big")
        if header[4:] == b"eXIf":
            chunks["exif"] = file.read(length)
        file.seek(length + 4, os.SEEK_CUR)  # over the checksum
    file.seek(position)
    return chunks


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of the stored pixels; ``size`` of a TIFF file depends on Pillow's version."""
    if image.format == "TIFF":
        return image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]  # type: ignore[attr-defined]
    return image.size
