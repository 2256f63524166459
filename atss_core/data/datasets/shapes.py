"""A synthetic data set in COCO format: coloured shapes on textured backgrounds.

It is small enough to train on in minutes without a GPU and needs no download. Every image is drawn from its
own seed, so image i of a split is the same however many images there are.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")
IMAGE_SIZES = ((144, 144), (128, 160), (160, 128), (128, 192))  # (height, width)

_SPLITS = ("train", "val")
_MAX_OBJECTS = 6
_MIN_SIDE = 12  # pixels
_MIN_VISIBLE = 0.6  # of an object's own area, else the object that would cover it goes elsewhere
_SUPERSAMPLING = 4
_HOLE = 0.55  # of a ring, as a part of its radius
_MIN_CONTRAST = 110.0  # RGB distance in 0..441 between an object and what is behind it
_PLACING_TRIES = 20
# Raise it whenever the drawing changes, so that folders written before are written anew.
_VERSION = 2


@dataclass(frozen=True)
class _Recipe:
    num_train: int
    num_val: int
    seed: int
    image_sizes: tuple[tuple[int, int], ...]
    version: int = _VERSION

    def as_info(self) -> dict[str, Any]:
        return {"description": "synthetic shapes", "recipe": json.loads(json.dumps(asdict(self)))}


def write_shapes(
    folder: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    image_sizes: Sequence[tuple[int, int]] = IMAGE_SIZES,
    progress: bool = True,
) -> Path:
    """Write the data set, or do nothing if the folder already holds exactly this one.

    The folder appears only when it is complete: ``train/*.jpg``, ``val/*.jpg``,
    ``annotations/train.json`` and ``annotations/val.json``. An older version or one of other parameters is
    replaced.

    Args:
        folder: where to write; with the default DATASETS.DATA_DIR this is ``datasets/shapes``.
        num_train: number of training images.
        num_val: number of validation images.
        seed: the same seed gives the same bytes.
        image_sizes: (height, width) in pixels; the images take turns.
        progress: show progress bars.

    Returns:
        The folder.

    Raises:
        ValueError: for impossible numbers, or if the folder holds something else.
    """
    recipe = _Recipe(num_train, num_val, seed, tuple((int(h), int(w)) for h, w in image_sizes))
    _check_recipe(recipe)
    folder = Path(folder).resolve()
    if _is_complete(folder, recipe):
        return folder
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for split in _SPLITS:
            _write_split(unfinished, split, recipe, progress)
        _move_into_place(unfinished, folder, recipe)
    except OSError as error:
        raise OSError(
            f"cannot write {folder} ({error.strerror or error}). {folder.parent} must be a folder that has"
            " room and that you may write to"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _check_recipe(recipe: _Recipe) -> None:
    if recipe.num_train < 1 or recipe.num_val < 1:
        raise ValueError(
            f"num_train and num_val must be at least 1, got {recipe.num_train} and {recipe.num_val}"
        )
    if not recipe.image_sizes or min(map(min, recipe.image_sizes)) < 2 * _MIN_SIDE:
        raise ValueError(
            f"image_sizes must be (height, width) pairs of at least {2 * _MIN_SIDE} pixels, "
            f"got {recipe.image_sizes}"
        )


def _read_info(folder: Path, split: str) -> dict[str, Any] | None:
    """Return what the annotation file says about how it was made, None if there is no such file."""
    try:
        return json.loads((folder / "annotations" / f"{split}.json").read_text(encoding="utf-8")).get("info")
    except (OSError, ValueError, AttributeError):
        return None


def _is_complete(folder: Path, recipe: _Recipe) -> bool:
    if any(_read_info(folder, split) != recipe.as_info() for split in _SPLITS):
        return False
    counts = [sum(1 for _ in (folder / split).glob("*.jpg")) for split in _SPLITS]
    return counts == [recipe.num_train, recipe.num_val]


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace anything that was not written by this module."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    info = _read_info(folder, "train")
    if not isinstance(info, dict) or "recipe" not in info:
        raise ValueError(f"{folder} exists and is not a shapes data set; give another folder or remove it")


def _move_into_place(unfinished: Path, folder: Path, recipe: _Recipe) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    try:
        unfinished.rename(folder)
    except OSError:
        # Another process may have written the same data set in the meantime.
        if not _is_complete(folder, recipe):
            raise


def _write_split(root: Path, split: str, recipe: _Recipe, progress: bool) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    count = recipe.num_train if split == "train" else recipe.num_val
    for i in tqdm(range(count), desc=f"drawing {split}", unit="image", disable=not progress):
        height, width = recipe.image_sizes[i % len(recipe.image_sizes)]
        rng = np.random.default_rng([recipe.seed, _SPLITS.index(split), i])
        image, objects = draw_image(height, width, rng)
        name = f"{i:06d}.jpg"
        content = io.BytesIO()  # Pillow would hide why a disk refuses
        Image.fromarray(image).save(content, "JPEG", quality=92)
        (root / split / name).write_bytes(content.getbuffer())
        images.append({"id": i + 1, "file_name": name, "height": height, "width": width})
        for entry in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "iscrowd": 0, **entry})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)]
    tree = {
        "info": recipe.as_info(),
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(tree), encoding="utf-8")


def draw_image(height: int, width: int, rng: Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw one to six shapes on a textured background.

    Later shapes may cover a part of earlier ones; ``bbox`` and ``area`` are of the pixels that stay visible.

    Args:
        height: pixels.
        width: pixels.
        rng: the only source of randomness.

    Returns:
        The image, uint8 RGB (height, width, 3), and a dict for each shape with ``category_id`` in 1..6,
        ``bbox`` (x, y, width, height) and ``area`` in pixels, as in COCO.
    """
    canvas = _texture(height, width, _muted_color(rng), rng)
    owner = np.full((height, width), -1)  # which object each pixel shows
    areas: list[int] = []
    classes: list[int] = []
    for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
        shape = int(rng.integers(len(CLASS_NAMES)))
        alpha = _place(CLASS_NAMES[shape], owner, areas, rng)
        if alpha is None:
            continue
        color = _contrasting_color(canvas[alpha > 0.5], rng)
        texture = _texture(height, width, color, rng)
        canvas += alpha[..., None] * (texture - canvas)
        owner[alpha > 0.5] = len(areas)
        areas.append(int((alpha > 0.5).sum()))
        classes.append(shape)
    objects = [_annotate(owner == i, classes[i]) for i in range(len(classes))]
    return _finish(canvas, rng), objects


def _annotate(visible: np.ndarray, shape: int) -> dict[str, Any]:
    """Describe the visible pixels, bool (height, width), of a shape."""
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    top, bottom, left, right = (int(side) for side in (rows[0], rows[-1], columns[0], columns[-1]))
    return {
        "category_id": shape + 1,
        "bbox": [left, top, right - left + 1, bottom - top + 1],
        "area": int(visible.sum()),
    }


def _place(name: str, owner: np.ndarray, areas: Sequence[int], rng: Generator) -> np.ndarray | None:
    """Find a place for a shape where all shapes before it stay visible.

    Returns:
        The opacity of the new shape in 0..1, float32 (height, width); None if no place was found.
    """
    height, width = owner.shape
    for _ in range(_PLACING_TRIES):
        alpha = _random_mask(name, height, width, rng)
        left_over = owner[alpha <= 0.5]
        visible = np.bincount(left_over[left_over >= 0], minlength=len(areas))
        if (visible >= _MIN_VISIBLE * np.asarray(areas)).all():
            return alpha
    return None


def _random_mask(name: str, height: int, width: int, rng: Generator) -> np.ndarray:
    """Return the opacity in 0..1, float32 (height, width), of a shape of random size, place and tilt."""
    largest = 0.95 * min(height, width)
    # Uniform in the logarithm: as many small as large ones.
    # Every fifth object from 12 pixels to the whole image, the others mostly a quarter to a half of it.
    exponent = rng.uniform(0, 1) if rng.random() < 0.2 else rng.triangular(0.2, 0.6, 1.0)
    side = _MIN_SIDE * (largest / _MIN_SIDE) ** exponent
    stretch = math.sqrt(rng.uniform(0.75, 1.33))
    points = _outline(name)
    points = _rotate(points, math.radians(rng.uniform(-18, 18)))
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    sides = np.clip([side * stretch, side / stretch], _MIN_SIDE, [0.97 * width, 0.97 * height])
    corner = rng.uniform(0, np.array([width, height]) - sides)
    scale = _SUPERSAMPLING
    mask = Image.new("L", (width * scale, height * scale))
    draw = ImageDraw.Draw(mask)
    draw.polygon([tuple(p) for p in (corner + points * sides) * scale], fill=255)
    if name == "ring":
        hole = corner + (0.5 + (points - 0.5) * _HOLE) * sides
        draw.polygon([tuple(p) for p in hole * scale], fill=0)
    return np.asarray(mask.reduce(scale), dtype=np.float32) / 255


def _outline(name: str) -> np.ndarray:
    """Return the corners (x, y) of an upright shape around the origin, float64 (corners, 2)."""
    if name in ("circle", "ring"):
        return _regular(64)
    if name == "square":
        return _rotate(_regular(4), math.pi / 4)
    if name == "triangle":
        return _regular(3)
    if name == "star":
        points = _regular(10)
        points[1::2] *= 0.45
        return points
    arm = 0.36
    quarter = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
    return np.concatenate([_rotate(quarter, i * math.pi / 2) for i in range(4)])


def _regular(corners: int) -> np.ndarray:
    angles = np.arange(corners) * (2 * math.pi / corners) - math.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _muted_color(rng: Generator) -> np.ndarray:
    """Return a greyish RGB colour in 0..255 for a background."""
    return rng.uniform(40, 215) + rng.uniform(-25, 25, size=3)


def _contrasting_color(behind: np.ndarray, rng: Generator) -> np.ndarray:
    """Return an RGB colour in 0..255 that stands out from the pixels behind, (pixels, 3)."""
    best, best_contrast = np.zeros(3), -1.0
    for _ in range(_PLACING_TRIES):
        color = rng.uniform(15, 240, size=3)
        contrast = float(np.quantile(np.linalg.norm(behind - color, axis=1), 0.1))
        if contrast > best_contrast:
            best, best_contrast = color, contrast
        if best_contrast >= _MIN_CONTRAST:
            break
    return best


def _texture(height: int, width: int, color: np.ndarray, rng: Generator) -> np.ndarray:
    """Return a pattern around a colour, float32 (height, width, 3)."""
    angle = rng.uniform(0, math.pi)
    period = rng.uniform(6, 24)  # pixels
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    kind = rng.integers(5)
    if kind == 0:
        pattern = np.zeros_like(along)
    elif kind == 1:
        pattern = 2 * (along - along.min()) / np.ptp(along) - 1
    elif kind == 2:
        pattern = np.sign(np.sin(along * (2 * math.pi / period)))
    elif kind == 3:
        pattern = np.sign(np.sin(along * (math.pi / period)) * np.sin(across * (math.pi / period)))
    else:
        pattern = _smooth_noise(height, width, rng)
    shift = rng.uniform(8, 24) * rng.uniform(0.6, 1.0, size=3)
    return (color + pattern[..., None] * shift).astype(np.float32)


def _smooth_noise(height: int, width: int, rng: Generator) -> np.ndarray:
    """Return blotches in about -1..1, float32 (height, width)."""
    coarse = rng.uniform(-1, 1, size=(height // 8 + 1, width // 8 + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _finish(canvas: np.ndarray, rng: Generator) -> np.ndarray:
    """Blur slightly, add sensor noise and round to uint8."""
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    noise = rng.normal(scale=rng.uniform(0, 6), size=canvas.shape)
    return (np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8)
