"""Read a dataset in YOLO format, a text file for each image, into the tree of a COCO file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atss_core.config.reading import read_yaml
from atss_core.data.datasets.coco import summarize
from atss_core.data.datasets.voc import read_class_file, size_or_error
from atss_core.data.images import SUFFIXES, list_images
from atss_core.utils.files import read_text
from atss_core.utils.logging import progress
from atss_core.utils.text import shorten

_DESCRIPTIONS = ("data.yaml", "dataset.yaml", "data.yml")
_SPLITS = ("train", "val", "valid", "test")
_CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
# Boxes are fractions of the image size. A little above 1 is rounding, far above are pixels.
_LARGEST_FRACTION = 1.5
# To distinguish polygons from key points: number of polygons to examine, how many of them for crossing sides,
# and the most numbers of a line with key points.
_NUM_POLYGONS, _NUM_CROSSED, _LONGEST_POSE = 1000, 200, 500


def is_yolo(path: Path) -> bool:
    """Return whether a path is a YOLO description, or a folder that has one, class names or labels."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    has_labels = (path / "labels").is_dir() or next(path.glob("*/labels"), None) is not None
    return has_labels or any((path / name).is_file() for name in (*_DESCRIPTIONS, *_CLASS_FILES))


def read_yolo(path: Path, split: str) -> tuple[dict[str, Any], Path, list[str]]:
    """Read images and their label files.

    A line of a label file is ``class x y width height``, centre and size as fractions of the size of the
    upright image, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon, which becomes the box around it. An image
    without a label file has no objects. With ``kpt_shape: [points, 2 or 3]`` in ``data.yaml``, key points of
    2 or 3 numbers each may follow a box instead; ``kpt_shape: null`` says that there are none.

    Args:
        path: ``data.yaml``, or a folder with ``images/<split>`` and ``labels/<split>``, or with
            ``<split>/images`` and ``<split>/labels``, or with a list of images ``<split>.txt``; labels may
            also be beside the images. Class names are in ``data.yaml`` or ``classes.txt``.
        split: the subset to read; empty for images right in ``images`` or in the folder.

    Returns:
        The tree, the folder of the images, and warnings about the files. An unreadable image has the reason
        as "unreadable" in the tree.

    Raises:
        FileNotFoundError: if the split or the names of the classes are missing.
        ValueError: if a label file is faulty.
    """
    description, root = _read_description(path)
    names = _class_names(description, root, path)
    files = _find_split(description, root, split, path)
    labels = [_label_file(file) for file in files]
    num_key_values = _num_key_values(description, path)
    hint = f"if points follow the box, say kpt_shape: [their number, 2 or 3] in {_description_to_write(path)}"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    polygons: list[np.ndarray] = []
    bar = progress(files, f"reading {root.name}")
    for image_id, (file, label) in enumerate(zip(bar, labels, strict=True), start=1):
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
        image = {"id": image_id, "file_name": name, **size_or_error(file)}
        images.append(image)
        lines = read_text(label).splitlines() if os.path.isfile(label) else []
        objects = [
            _read_line(line.split(), len(names), num_key_values, hint, f"{label}, line {number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        polygons += [numbers for _, numbers in objects if len(numbers) > 4][: _NUM_POLYGONS - len(polygons)]
        scale = (image["width"], image["height"]) * 2
        for class_index, numbers in [] if "unreadable" in image else objects:
            known = {"id": len(annotations) + 1, "image_id": image_id, "category_id": class_index + 1}
            annotations.append({**known, "bbox": (_box_of(numbers) * scale).tolist(), "iscrowd": 0})
    warnings = list(_warnings(files, labels))
    if "kpt_shape" not in description:
        warnings += _look_for_key_points(polygons, path)
    categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}, root, warnings


def _num_key_values(description: dict[str, Any], path: Path) -> int:
    """Return the count of key point numbers after a box, 0 without key points."""
    shape = description.get("kpt_shape")
    if shape is None:
        return 0
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(type(value) is int for value in shape)
    if not is_shape or shape[0] < 1 or shape[1] not in (2, 3):
        raise ValueError(
            f"{path}: kpt_shape: expected [number of points, 2 or 3], or null for polygons, got"
            f" {shorten(shape)}. Correct it."
        )
    return shape[0] * shape[1]


def _look_for_key_points(polygons: list[np.ndarray], path: Path) -> Iterator[str]:
    """Yield a warning if polygons may be boxes with key points; refuse them if they must be.

    They may be if all have as many numbers, and over three quarters begin with a box that is inside the image
    and around the points behind it; polygons in the upper left of images do so by chance. They must be if,
    besides, the lines between the points cross each other in over a tenth of them: no polygon is drawn so.
    """
    lengths = {len(numbers) for numbers in polygons}
    if (
        len(lengths) != 1
        or max(lengths) > _LONGEST_POSE
        or 4 * sum(map(_may_be_key_points, polygons)) <= 3 * len(polygons)
    ):
        return
    values = f"lines of {max(lengths) + 1} values that may be boxes with key points"
    remedy = f"kpt_shape: [number of points, 2 or 3] in {_description_to_write(path)}"
    if _is_crossing(np.array(polygons[:_NUM_CROSSED]).reshape(-1, max(lengths) // 2, 2)).mean() > 0.1:
        raise ValueError(
            f"{path}: expected boxes or polygons, got {values}. Say {remedy}, or kpt_shape: null for polygons"
            " there."
        )
    yield f"{values} are taken as polygons; if they are poses, say {remedy}"


def _is_crossing(points: np.ndarray) -> np.ndarray:
    """Return which closed polygons, points (P, n, 2), have two sides that cross; bool (P,)."""
    start, end = points[:, :, None], np.roll(points, -1, axis=1)[:, :, None]  # sides (P, n, 1, 2)
    other = points[:, None]  # (P, 1, n, 2)
    (ax, ay), (bx, by) = np.moveaxis(end - start, -1, 0), np.moveaxis(other - start, -1, 0)
    turn = np.sign(ax * by - ay * bx)  # of point j, seen along side i
    is_separated = turn * np.roll(turn, -1, axis=2) < 0  # the ends of side j lie on either hand of side i
    return (is_separated & is_separated.swapaxes(1, 2)).any(axis=(1, 2))


def _may_be_key_points(numbers: np.ndarray) -> bool:
    """Return whether numbers of a line may be a box in the image and points in it; (0, 0) is no point."""
    center, half, rest = numbers[:2], numbers[2:4] / 2, numbers[4:]
    slack = 0.01
    if (np.abs(center - 0.5) + half > 0.5 + slack).any():
        return False
    for rows in (rest.reshape(-1, n) for n in (2, 3) if len(rest) % n == 0):
        points, visibility = rows[:, :2], rows[:, 2:]
        is_inside = (np.abs(points - center) <= half + slack).all(axis=1) | (points == 0).all(axis=1)
        if is_inside.all() and np.isin(visibility, (0, 1, 2)).all():
            return True
    return False


def _warnings(files: list[Path], labels: list[Path]) -> Iterator[str]:
    """Yield warnings about images and label files."""
    without = [file.name for file, label in zip(files, labels, strict=True) if not os.path.isfile(label)]
    if len(without) == len(files):
        yield f"none of {len(files)} images has a label file; expected for instance {labels[0]}"
    elif without:
        yield f"{len(without)} image(s) have no label file and count as empty: {summarize(without)}"
    shared = [label.name for label, count in Counter(labels).items() if count > 1]
    if shared:
        yield f"{len(shared)} label file(s) belong to several images of one name: {summarize(shared)}"
    lone: list[str] = []
    folders = {label.parent: file.parent for file, label in zip(files, labels, strict=True)}
    for folder, image_folder in folders.items():
        if folder != image_folder:
            names = {path.stem for path in image_folder.iterdir() if path.suffix.lower() in SUFFIXES}
            lone += sorted(str(f) for f in folder.glob("*.txt") if f.stem not in {*names, "classes"})
    if lone:
        yield f"{len(lone)} label file(s) have no image: {summarize(lone)}; restore the images"


def _description_file(path: Path) -> Path | None:
    """Return the ``data.yaml`` of a dataset, None if there is none."""
    if not path.is_dir():
        return path
    return next((path / name for name in _DESCRIPTIONS if (path / name).is_file()), None)


def _description_to_write(path: Path) -> str:
    """Name the ``data.yaml`` of a dataset for a remedy, or a new one."""
    return str(_description_file(path) or f"a new file {path / _DESCRIPTIONS[0]}")


def _read_description(path: Path) -> tuple[dict[str, Any], Path]:
    """Return the content of ``data.yaml``, empty if there is none, and the folder its paths start from."""
    file = _description_file(path)
    if file is None:
        return {}, path
    if not os.path.exists(file):
        raise FileNotFoundError(f"there is no YOLO description {file}")
    content = read_yaml(file, "keys such as names and train")
    root = file.parent / os.path.expanduser(str(content.get("path") or "."))
    return content, root if os.path.isdir(root) else file.parent


def _class_names(description: dict[str, Any], root: Path, path: Path) -> list[str]:
    names = description.get("names")
    if isinstance(names, dict):
        by_index = {str(index): name for index, name in names.items()}  # some tools quote the numbers
        if set(by_index) != {str(index) for index in range(len(names))}:
            raise ValueError(f"{path}: the keys of names must be 0, 1, 2, ..., got {shorten(list(names))}")
        names = [by_index[str(index)] for index in range(len(names))]
    if names is None:
        names = next(filter(None, (read_class_file(root / file) for file in _CLASS_FILES)), None)
    if not names or not isinstance(names, list):
        raise FileNotFoundError(
            f"YOLO dataset {path} does not name its classes; expected names: [...] in"
            f" {_description_to_write(path)}, or a file {root / _CLASS_FILES[0]} with a class in each line"
        )
    count = description.get("nc", len(names))
    if str(count) != str(len(names)):
        raise ValueError(
            f"{path}: nc is {shorten(count)}, but names has {len(names)} classes; correct one of them"
        )
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise ValueError(
                f"{path}: YAML reads the class name {shorten(name)} as no text; put it in quotes"
            )
    return [str(name) for name in names]


def _find_split(description: dict[str, Any], root: Path, split: str, path: Path) -> list[Path]:
    """Return the images of a split by name."""
    known = [
        key
        for key in _SPLITS
        if key in description or os.path.isdir(root / "images" / key) or os.path.isdir(root / key / "images")
    ]
    given = description.get(split) if split else None
    if given is not None:
        items = [str(item) for item in (given if isinstance(given, list) else [given])]
        paths = [_locate(root, os.path.expanduser(item)) for item in items]
    elif not split and known:
        raise ValueError(
            f"YOLO dataset {path} has the splits {summarize(known)}: say which, such as {path}@{known[0]}"
        )
    else:
        candidates = [root / "images" / split, root / split / "images", root / split]
        candidates += [root / f"{split}.txt"] if split else []
        paths = [candidate for candidate in candidates if os.path.exists(candidate)][:1]
    missing = [item for item in paths if not os.path.exists(item)] if paths else [root / "images" / split]
    if missing:
        remedy = f"its splits are {', '.join('@' + key for key in known)}" if known else "check its paths"
        raise FileNotFoundError(
            f"YOLO dataset {path} has no images for {split or 'no split'!r}: there is no"
            f" {missing[0]!s:.400}; {remedy}"
        )
    files = [file for item in paths for file in _images_at(item)]
    if not files:
        raise ValueError(f"{paths[0]} has no images; expected files such as *{' *'.join(SUFFIXES[:3])}")
    return files


def _locate(root: Path, item: str) -> Path:
    """Return the location of a path of a description; exports often carry paths of another folder.

    Tries the path itself, from the root, and then its last two parts: one would not tell splits apart.
    """
    parts = [part for part in Path(item).parts if part not in ("..", "/", "\\")]
    options = [root / item, root.joinpath(*parts[-2:])]
    return next((option for option in options if os.path.exists(option)), options[0])


def _images_at(path: Path) -> list[Path]:
    """Return the images of a folder, or those that a text file lists."""
    if os.path.isdir(path):
        return [path / name for name in list_images(path)]
    lines = [os.path.expanduser(line.strip()) for line in read_text(path).splitlines() if line.strip()]
    repeated = [line for line, count in Counter(lines).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} lists {summarize(repeated[:1])} more than once; remove the repeated lines")
    # The list may be made for another folder: drop as many leading parts of all paths as the first one needs.
    parts = Path(lines[0]).parts if lines else ()
    first = next((i for i in range(len(parts)) if os.path.exists(path.parent.joinpath(*parts[i:]))), 0)
    return [path.parent.joinpath(*Path(line).parts[first:]) for line in lines]


def _label_file(image: Path) -> Path:
    """Return the label file of an image: beside it, or in ``labels`` for the last ``images``."""
    beside = image.with_suffix(".txt")
    if os.path.isfile(beside):
        return beside
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_line(
    fields: list[str], num_classes: int, num_key_values: int, hint: str, location: str
) -> tuple[int, np.ndarray]:
    """Return the class index of a line and the numbers of its box or polygon, in fractions of the image."""
    line = shorten(" ".join(fields))
    try:
        values = np.array(fields, dtype=np.float64)
    except ValueError:
        values = np.array([np.nan])
    if num_key_values:
        is_known, others = len(values) == 5 + num_key_values, f"{num_key_values} values of kpt_shape more"
    else:
        is_known, others = len(values) >= 7 and len(values) % 2 == 1, "class and a polygon"
    if not (is_known or len(values) == 5) or not np.isfinite(values).all():
        advice = f"; {hint}" if len(fields) > 5 and not num_key_values else ""
        raise ValueError(f"{location}: expected class x y width height, or {others}, got {line}{advice}")
    class_index, numbers = int(values[0]), values[1 : 5 if num_key_values else None]
    if class_index != values[0] or not 0 <= class_index < num_classes:
        raise ValueError(
            f"{location}: class {values[0]:g} is not one of the {num_classes} classes, which count from 0 to"
            f" {num_classes - 1}; correct it, or name the class"
        )
    if np.abs(numbers).max() > _LARGEST_FRACTION:
        raise ValueError(
            f"{location}: boxes are fractions of the sides of the image, from 0 to 1, got {line}; divide"
            f" pixels by width and height{'; ' + hint if len(numbers) > 4 else ''}"
        )
    return class_index, numbers


def _box_of(numbers: np.ndarray) -> np.ndarray:
    """Return (x, y, width, height) of a centre and size, or of the box around a polygon."""
    if len(numbers) == 4:
        return np.concatenate([numbers[:2] - numbers[2:] / 2, numbers[2:]])
    points = numbers.reshape(-1, 2)
    return np.concatenate([points.min(0), np.ptp(points, axis=0)])
