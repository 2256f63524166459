"""Predictor inputs: files, folders, encoded bytes, Pillow images, OpenCV arrays and tensors."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeGuard, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atss_core.data import read_image, to_rgb
from atss_core.data.images import MAX_PIXELS, SUFFIXES
from atss_core.data.transforms import from_pixels
from atss_core.utils.text import shorten

ImageLike: TypeAlias = (
    "str | Path | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray[Any, Any] | Tensor"
)

EXPECTED = "expected a path, encoded bytes, a file opened with 'rb', a Pillow image, an array or a tensor"

# Interpolation leaves 0..1 by rounding errors, and pixels of another range by far more.
TOLERANCE = 1e-3


def each_source(sources: ImageLike | Iterable[ImageLike]) -> Iterator[ImageLike]:
    """Yield single images, those of a folder by name.

    Raises:
        ValueError: if a folder has no images, or a source has an unknown type.
    """
    if is_folder(sources):
        yield from find_images(sources)
    elif is_single_image(sources):
        yield sources
    elif isinstance(sources, Mapping) or not isinstance(sources, Iterable):
        raise ValueError(f"{EXPECTED}, got {type(sources).__name__}")
    else:
        for source in cast("Iterable[ImageLike]", sources):
            yield from each_source(source)


def find_images(folder: str | Path) -> list[Path]:
    """Return the images of a folder, by name.

    Raises:
        ValueError: if there are none, or no such folder.
    """
    folder = Path(os.path.expanduser(folder))
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    # macOS adds files that begin with ._ to archives.
    images = [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith("._")]
    if not images:
        raise ValueError(f"no images in {folder}: expected a folder with files such as *.jpg or *.png")
    return images


def is_single_image(source: ImageLike | Iterable[ImageLike]) -> TypeGuard[ImageLike]:
    """Tell whether a source is one image, and not a list or folder of them."""
    if isinstance(source, (str, Path)):
        return not is_folder(source)
    types = (bytes, bytearray, memoryview, Image.Image, np.ndarray, Tensor)
    return isinstance(source, types) or hasattr(source, "read")


def is_folder(source: ImageLike | Iterable[ImageLike]) -> TypeGuard[str | Path]:
    """Tell whether a source is the path of a folder.

    Raises:
        ValueError: for a URL or encoded data.
    """
    if not isinstance(source, (str, Path)):
        return False
    name = str(source)
    if re.match(r"data:|[a-z][a-z0-9+.-]+:/", name, re.IGNORECASE) or len(name) > 4096:  # Linux's PATH_MAX
        raise ValueError(f"{EXPECTED}, got the URL or data {shorten(name)}. Download or decode it first.")
    return os.path.isdir(os.path.expanduser(source))  # False where the name is too long for a file


def path_of(source: ImageLike) -> Path | None:
    """Return the file of an image, None for one in memory."""
    return Path(os.path.expanduser(source)) if isinstance(source, (str, Path)) else None


def to_image(source: ImageLike, max_pixels: int = MAX_PIXELS, grey_bits: int = 0) -> Image.Image:
    """Return a source as an RGB image.

    Args:
        source: the path of an image, the bytes of such a file, or the file opened in binary mode, turned
            upright by their EXIF data; an image of any mode; an array as OpenCV has it, uint8 (H, W, 3) in
            BGR, (H, W, 4) in BGRA or grey (H, W); a tensor (3, H, W) in RGB, uint8 or floats in 0..1.
        max_pixels: files of larger images are refused.
        grey_bits: of grey values of more than 8 bits, see ``to_rgb``.

    Raises:
        UnreadableImageError: if a file or bytes cannot be read.
        ValueError: for another type, shape, or range.
    """
    if isinstance(source, (str, Path)):
        return read_image(os.path.expanduser(source), True, max_pixels, grey_bits)
    if isinstance(source, Image.Image):
        return to_rgb(source, grey_bits)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    content: Any = source.read() if hasattr(source, "read") else source
    if not hasattr(source, "read") and not isinstance(source, (bytes, bytearray, memoryview)):
        raise ValueError(f"{EXPECTED}, got {type(source).__name__}")
    if isinstance(content, str):
        raise ValueError(f"{EXPECTED}, got a file opened as text. Open it with 'rb'.")
    if not content:
        raise ValueError(f"{EXPECTED}, got no bytes. A file that was read or written before needs seek(0).")
    return read_image(io.BytesIO(content), True, max_pixels, grey_bits)


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))):
        raise ValueError(
            f"an array must be uint8 of shape (H, W, 3) in BGR, (H, W, 4) in BGRA or (H, W) in grey, as "
            f"OpenCV reads images, got {array.dtype} of shape {shape}; a tensor may have floats in 0..1"
        )
    if 0 in shape:
        raise ValueError(f"an image needs pixels, got (height, width) {shape[:2]}")
    if array.ndim == 2 or shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(array.reshape(shape[:2]))).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 2::-1]))  # without alpha, in RGB


def _from_tensor(tensor: Tensor) -> Image.Image:
    """Round floats to 8 bits, as files have them."""
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(
            f"a tensor must have shape (3, H, W) in RGB, got {tuple(tensor.shape)}; pass a batch as a list"
        )
    if not tensor.numel():
        raise ValueError(f"an image needs pixels, got (height, width) {tuple(tensor.shape[1:])}")
    if tensor.is_floating_point():
        low, high = (limit.item() for limit in tensor.aminmax())
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # NaN is in no range
            raise ValueError(
                f"a tensor of floats must be in 0..1, RGB, got {low:.4g}..{high:.4g}; divide pixels by 255, "
                f"and leave out normalisation, which the predictor does"
            )
        tensor = (tensor.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    elif tensor.dtype != torch.uint8:
        raise ValueError(f"a tensor must be uint8 or floats in 0..1, got {tensor.dtype}")
    return from_pixels(tensor.cpu().contiguous())
