"""What the predictor takes: files, folders, pictures of Pillow, OpenCV's arrays and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atss_core.data import read_image, to_rgb
from atss_core.data.pictures import MAX_PIXELS, SUFFIXES
from atss_core.data.transforms import from_pixels

Picture: TypeAlias = "str | Path | Image.Image | np.ndarray[Any, Any] | Tensor"

# Interpolation leaves 0..1 by rounding errors, and pixels of another range by far more.
TOLERANCE = 1e-3


def each_source(sources: Picture | Iterable[Picture]) -> Iterator[Picture]:
    """Yield single pictures, those of a folder by name.

    Raises:
        ValueError: if a folder has no pictures.
    """
    if isinstance(sources, (str, Path)) and Path(sources).expanduser().is_dir():
        yield from find_pictures(sources)
    elif is_one_picture(sources) or not isinstance(sources, Iterable):
        yield sources
    else:
        for source in sources:
            yield from each_source(source)


def find_pictures(folder: str | Path) -> list[Path]:
    """Return the pictures of a folder, by name.

    Raises:
        ValueError: if there are none, or no such folder.
    """
    folder = Path(folder).expanduser()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    # macOS adds files that begin with ._ to archives.
    found = [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith("._")]
    if not found:
        raise ValueError(f"no pictures in {folder}: expected a folder with files such as *.jpg or *.png")
    return found


def is_one_picture(source: Picture | Iterable[Picture]) -> TypeGuard[Picture]:
    """Tell whether a source stands for one picture, and not for a list or folder of them."""
    if isinstance(source, (str, Path)):
        return not Path(source).expanduser().is_dir()
    return isinstance(source, (Image.Image, np.ndarray, Tensor))


def path_of(source: Picture) -> Path | None:
    """Return the file of a picture, None for one in memory."""
    return Path(source).expanduser() if isinstance(source, (str, Path)) else None


def to_picture(source: Picture, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a source as an RGB picture.

    Args:
        source: the path of a picture, which is turned upright as its EXIF data says; a picture of any mode;
            an array as OpenCV has it, uint8 (H, W, 3) in BGR, (H, W, 4) in BGRA or grey (H, W); a tensor
            (3, H, W) in RGB, uint8 or floats in 0..1, on any device.
        max_pixels: files of larger pictures are refused.

    Raises:
        ValueError: if it is something else, or its shape, type or range is.
    """
    if isinstance(source, (str, Path)):
        return read_image(Path(source).expanduser(), apply_exif=True, max_pixels=max_pixels)
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, np.ndarray):
        return from_array(source)
    if isinstance(source, Tensor):
        return from_tensor(source)
    raise ValueError(f"expected a path, a Pillow picture, an array or a tensor, got {type(source).__name__}")


def from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """Return the RGB picture of OpenCV's array; see ``to_picture``."""
    shape = array.shape
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))):
        raise ValueError(
            f"an array must be uint8 of shape (H, W, 3) in BGR, (H, W, 4) in BGRA or (H, W) in grey, as "
            f"OpenCV reads pictures, got {array.dtype} of shape {shape}; a tensor may have floats in 0..1"
        )
    check_not_empty(shape[:2])
    if array.ndim == 2 or shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(array.reshape(shape[:2]))).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 2::-1]))  # without alpha, in RGB


def from_tensor(tensor: Tensor) -> Image.Image:
    """Return the RGB picture of a tensor, rounded to 8 bits as files are; see ``to_picture``."""
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(
            f"a tensor must have shape (3, H, W) in RGB, got {tuple(tensor.shape)}; pass a batch as a list"
        )
    check_not_empty(tuple(tensor.shape[1:]))
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


def check_not_empty(image_size: Sequence[int]) -> None:
    """Refuse a picture without pixels."""
    if 0 in image_size:
        raise ValueError(f"a picture needs pixels, got (height, width) {tuple(image_size)}")
