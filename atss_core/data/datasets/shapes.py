"""A synthetic dataset in COCO format: coloured shapes on textured backgrounds.

It is small enough to train on in minutes without a GPU and needs no download. Every image is drawn from its
own seed, so image i of a split does not depend on the number of images.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from atss_core.utils.files import draft_folder, remove_leftovers

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")
IMAGE_SIZES = ((144, 144), (128, 160), (160, 128), (128, 192))  # (height, width)

_INFO = {"description": "synthetic shapes"}
_SPLITS = ("train", "val")
_MAX_OBJECTS = 6
_MIN_SIDE = 12  # pixels
_MIN_VISIBLE = 0.6  # of an object's own area, else the object that would cover it is moved
_SUPERSAMPLING = 4
_HOLE = 0.55  # of a ring, as a fraction of its radius
_MIN_CONTRAST = 110.0  # RGB distance in 0..441 between an object and its background
_NUM_TRIES = 20
# Increase it whenever the drawing changes, so that existing folders are rewritten.
_VERSION = 2


def write_shapes(
    folder: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    image_sizes: Sequence[tuple[int, int]] = IMAGE_SIZES,
    progress: bool = True,
) -> Path:
    """Write the dataset, or do nothing if the folder already holds exactly this one; return the folder.

    The folder, ``datasets/shapes`` for the default DATASETS.DATA_DIR, appears only when it is complete:
    ``train/*.jpg``, ``val/*.jpg``, ``annotations/train.json`` and ``annotations/val.json``. An older version
    or one of other parameters is replaced. The same seed gives the same bytes. The images take turns in
    ``image_sizes``, (height, width) in pixels.

    Raises:
        ValueError: for impossible numbers, or if the folder holds something else.
    """
    sizes = [[int(height), int(width)] for height, width in image_sizes]
    if num_train < 1 or num_val < 1:
        raise ValueError(f"num_train and num_val must be at least 1, got {num_train} and {num_val}")
    if not sizes or min(map(min, sizes)) < 2 * _MIN_SIDE:
        raise ValueError(
            f"image_sizes must be (height, width) pairs of at least {2 * _MIN_SIDE} pixels, got {sizes}"
        )
    recipe: dict[str, Any] = {"num_train": num_train, "num_val": num_val, "seed": seed, "image_sizes": sizes}
    recipe["version"] = _VERSION
    folder = Path(folder).resolve()
    if _is_complete(folder, recipe):
        return folder
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    info = _read_info(folder, "train")
    if not is_empty and not (isinstance(info, dict) and "recipe" in info):  # not written by this module
        raise ValueError(f"{folder} exists and is not a shapes dataset; give another folder or remove it")
    remove_leftovers(folder.parent, is_locked=False)
    try:
        with draft_folder(folder) as unfinished:
            for split in _SPLITS:
                _write_split(unfinished, split, recipe, progress)
            _move(unfinished, folder, recipe)
    except OSError as error:
        raise OSError(
            f"cannot write {folder} ({error.strerror or error}). {folder.parent} must be a folder that has"
            " room and that you may write to"
        ) from error
    return folder


def _read_info(folder: Path, split: str) -> dict[str, Any] | None:
    """Return the section "info" of the annotation file, None if there is no such file."""
    try:
        return json.loads((folder / "annotations" / f"{split}.json").read_text(encoding="utf-8")).get("info")
    except (OSError, ValueError, AttributeError):
        return None


def _is_complete(folder: Path, recipe: dict[str, Any]) -> bool:
    return all(
        _read_info(folder, split) == {**_INFO, "recipe": recipe}
        and sum(1 for _ in (folder / split).glob("*.jpg")) == recipe[f"num_{split}"]
        for split in _SPLITS
    )


def _move(unfinished: Path, folder: Path, recipe: dict[str, Any]) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    try:
        unfinished.rename(folder)
    except OSError:
        # Another process may have written the same dataset in the meantime.
        if not _is_complete(folder, recipe):
            raise


def _write_split(root: Path, split: str, recipe: dict[str, Any], progress: bool) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    sizes = recipe["image_sizes"]
    for i in tqdm(range(recipe[f"num_{split}"]), desc=f"drawing {split}", unit="image", disable=not progress):
        height, width = sizes[i % len(sizes)]
        rng = np.random.default_rng([recipe["seed"], _SPLITS.index(split), i])
        image, objects = draw_image(height, width, rng)
        name = f"{i:06d}.jpg"
        content = io.BytesIO()  # Pillow would hide the reason of a disk error
        Image.fromarray(image).save(content, "JPEG", quality=92)
        (root / split / name).write_bytes(content.getbuffer())
        images.append({"id": i + 1, "file_name": name, "height": height, "width": width})
        for entry in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "iscrowd": 0, **entry})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)]
    info = {**_INFO, "recipe": recipe}
    tree = {"info": info, "images": images, "categories": categories, "annotations": annotations}
    (root / "annotations" / f"{split}.json").write_text(json.dumps(tree), encoding="utf-8")


def draw_image(height: int, width: int, rng: Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw one to six shapes on a textured background, from ``rng`` alone.

    Later shapes may cover a part of earlier ones; ``bbox`` and ``area`` are of the visible pixels.

    Returns:
        The image, uint8 RGB (height, width, 3), and a dict for each shape with ``category_id`` in 1..6,
        ``bbox`` (x, y, width, height) and ``area`` in pixels, as in COCO.
    """
    greyish = rng.uniform(40, 215) + rng.uniform(-25, 25, size=3)
    canvas = _texture(height, width, greyish, rng)
    object_idx = np.full((height, width), -1)  # of the object that each pixel shows
    areas: list[int] = []
    classes: list[int] = []
    for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
        shape = int(rng.integers(len(CLASS_NAMES)))
        alpha = _place_shape(CLASS_NAMES[shape], object_idx, areas, rng)
        if alpha is None:
            continue
        color = _contrasting_color(canvas[alpha > 0.5], rng)
        texture = _texture(height, width, color, rng)
        canvas += alpha[..., None] * (texture - canvas)
        object_idx[alpha > 0.5] = len(areas)
        areas.append(int((alpha > 0.5).sum()))
        classes.append(shape)
    objects = []
    for i, shape in enumerate(classes):
        rows, columns = np.nonzero(object_idx == i)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
        objects.append({"category_id": shape + 1, "bbox": box, "area": len(rows)})
    # Blur slightly and add sensor noise.
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    noise = rng.normal(scale=rng.uniform(0, 6), size=canvas.shape)
    return (np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8), objects


def _place_shape(name: str, object_idx: np.ndarray, areas: list[int], rng: Generator) -> np.ndarray | None:
    """Return the opacity, as ``_random_mask``, of a shape that leaves all earlier ones visible, or None."""
    height, width = object_idx.shape
    for _ in range(_NUM_TRIES):
        alpha = _random_mask(name, height, width, rng)
        uncovered = object_idx[alpha <= 0.5]
        visible = np.bincount(uncovered[uncovered >= 0], minlength=len(areas))
        if (visible >= _MIN_VISIBLE * np.asarray(areas)).all():
            return alpha
    return None


def _random_mask(name: str, height: int, width: int, rng: Generator) -> np.ndarray:
    """Return the opacity in 0..1, float32 (height, width), of a shape of random size, position and tilt."""
    largest = 0.95 * min(height, width)
    # Uniform in the logarithm: as many small as large ones.
    # Every fifth object from 12 pixels to the whole image, the others mostly a quarter to a half of it.
    exponent = rng.uniform(0, 1) if rng.random() < 0.2 else rng.triangular(0.2, 0.6, 1.0)
    side = _MIN_SIDE * (largest / _MIN_SIDE) ** exponent
    stretch = math.sqrt(rng.uniform(0.75, 1.33))
    points = _rotate(_outline(name), math.radians(rng.uniform(-18, 18)))
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
    if name == "cross":
        arm = 0.36
        quarter = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
        return np.concatenate([_rotate(quarter, i * math.pi / 2) for i in range(4)])
    num_corners = {"square": 4, "triangle": 3, "star": 10}.get(name, 64)
    angles = np.arange(num_corners) * (2 * math.pi / num_corners) - math.pi / 2
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if name == "star":
        points[1::2] *= 0.45
    return _rotate(points, math.pi / 4) if name == "square" else points


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _contrasting_color(background: np.ndarray, rng: Generator) -> np.ndarray:
    """Return an RGB colour in 0..255 that contrasts with the background pixels, (pixels, 3)."""
    best, best_contrast = np.zeros(3), -1.0
    for _ in range(_NUM_TRIES):
        color = rng.uniform(15, 240, size=3)
        contrast = float(np.quantile(np.linalg.norm(background - color, axis=1), 0.1))
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
    else:  # smooth blotches in about -1..1
        coarse = rng.uniform(-1, 1, size=(height // 8 + 1, width // 8 + 1)).astype(np.float32)
        pattern = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    shift = rng.uniform(8, 24) * rng.uniform(0.6, 1.0, size=3)
    return (color + pattern[..., None] * shift).astype(np.float32)
