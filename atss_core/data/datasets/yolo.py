"""Read a data set in the layout of YOLO, a text file for each image, into the tree of a COCO file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atss_core.config.reading import read_yaml
from atss_core.data.datasets.coco import some
from atss_core.data.images import SUFFIXES, list_images
from atss_core.data.datasets.voc import read_class_file, size_or_error
from atss_core.utils.files import read_text
from atss_core.utils.logging import progress
from atss_core.utils.text import shorten

DESCRIPTIONS = ("data.yaml", "dataset.yaml", "data.yml")
SPLITS = ("train", "val", "valid", "test")
CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
# Boxes are fractions of the sides of the image. A little above 1 is rounding, far above are pixels.
LARGEST_FRACTION = 1.5
# To tell polygons from key points: how many are looked at, in how many of them for sides that cross, and the
# most numbers of a line with key points.
_NUM_POLYGONS, _NUM_CROSSED, _LONGEST_POSE = 1000, 200, 500
_ABOUT_KEY_POINTS = "if points follow the box, say kpt_shape: [their number, 2 or 3] in "


def is_yolo(path: Path) -> bool:
    """Tell whether a path is a YOLO description, or a folder that has one, class names or labels."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    has_labels = (path / "labels").is_dir() or next(path.glob("*/labels"), None) is not None
    return has_labels or any((path / name).is_file() for name in (*DESCRIPTIONS, *CLASS_FILES))


def read_yolo(path: Path, split: str) -> tuple[dict[str, Any], Path, list[str]]:
    """Read images and their label files.

    A line of a label file is ``class x y width height``, the centre and sides as fractions of those of the
    upright image, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon, of which the surrounding box is taken. A
    image without a label file has no objects. With ``kpt_shape: [points, 2 or 3]`` in ``data.yaml``, key
    points may follow a box instead, 2 or 3 numbers each; ``kpt_shape: null`` says that there are none.

    Args:
        path: ``data.yaml``, or a folder with ``images/<split>`` and ``labels/<split>``, or with
            ``<split>/images`` and ``<split>/labels``, or with a list of images ``<split>.txt``; labels may
            also be beside the images. Class names are in ``data.yaml`` or ``classes.txt``.
        split: the part of the data; empty for images right in ``images`` or in the folder.

    Returns:
        The tree, the folder of the images, and what is odd about the files, a line each. An image that
        cannot be read has its reason as "unreadable" in the tree.

    Raises:
        FileNotFoundError: if the split or the names of the classes are missing.
        ValueError: if a label file is faulty.
    """
    description, root = _read_description(path)
    names = _class_names(description, root, path)
    files = _find_split(description, root, split, path)
    labels = [_label_file(file) for file in files]
    num_key_values = _num_key_values(description, path)
    about_key_points = _ABOUT_KEY_POINTS + _description_to_write(path)
    images, boxes, classes, owners = [], [], [], []
    polygons: list[np.ndarray] = []
    bar = progress(files, f"reading {root.name}")
    for image_id, (file, label) in enumerate(zip(bar, labels, strict=True), start=1):
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
        image = {"id": image_id, "file_name": name, **size_or_error(file)}
        images.append(image)
        found = list(_read_labels(label, len(names), num_key_values, about_key_points))
        polygons += [numbers for _, numbers in found if len(numbers) > 4][: _NUM_POLYGONS - len(polygons)]
        height, width = image["height"], image["width"]
        for class_index, numbers in [] if "unreadable" in image else found:
            classes.append(class_index + 1)
            boxes.append((_box_of(numbers) * (width, height, width, height)).tolist())
            owners.append(image_id)
    warnings = list(_warnings(files, labels))
    if "kpt_shape" not in description:
        warnings += _look_for_key_points(polygons, path)
    rows = enumerate(zip(owners, classes, boxes, strict=True), start=1)
    annotations = [
        {"id": number, "image_id": owner, "category_id": category, "bbox": box, "iscrowd": 0}
        for number, (owner, category, box) in rows
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    return tree, root, warnings


def _num_key_values(description: dict[str, Any], path: Path) -> int:
    """Return how many numbers of key points follow a box, 0 if none do."""
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
    """Yield a warning if polygons may be boxes with key points, and refuse them if they must be.

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
    """Tell of closed polygons, points (P, n, 2), whether two of their sides cross; bool (P,)."""
    start, end = points[:, :, None], np.roll(points, -1, axis=1)[:, :, None]  # sides (P, n, 1, 2)
    other = points[:, None]  # (P, 1, n, 2)
    (ax, ay), (bx, by) = np.moveaxis(end - start, -1, 0), np.moveaxis(other - start, -1, 0)
    turn = np.sign(ax * by - ay * bx)  # of point j, seen along side i
    is_parted = turn * np.roll(turn, -1, axis=2) < 0  # the ends of side j lie on either hand of side i
    return (is_parted & is_parted.swapaxes(1, 2)).any(axis=(1, 2))


def _may_be_key_points(numbers: np.ndarray) -> bool:
    """Tell whether the numbers of a line are a box in the image and points in it; (0, 0) is no point."""
    center, half, rest = numbers[:2], numbers[2:4] / 2, numbers[4:]
    slack = 0.01
    if (np.abs(center - 0.5) + half > 0.5 + slack).any():
        return False
    for points in (rest.reshape(-1, n) for n in (2, 3) if len(rest) % n == 0):
        places, visibility = points[:, :2], points[:, 2:]
        is_inside = (np.abs(places - center) <= half + slack).all(axis=1) | (places == 0).all(axis=1)
        if is_inside.all() and np.isin(visibility, (0, 1, 2)).all():
            return True
    return False


def _warnings(files: list[Path], labels: list[Path]) -> Iterator[str]:
    """Yield what is odd about images and label files, a line each."""
    without = [file.name for file, label in zip(files, labels, strict=True) if not os.path.isfile(label)]
    if len(without) == len(files):
        yield f"none of {len(files)} images has a label file; expected for instance {labels[0]}"
    elif without:
        yield f"{len(without)} image(s) have no label file and count as empty: {some(without)}"
    shared = [label.name for label, count in Counter(labels).items() if count > 1]
    if shared:
        yield f"{len(shared)} label file(s) belong to several images of one name: {some(shared)}"
    folders = {label.parent: file.parent for file, label in zip(files, labels, strict=True)}
    lone = [str(label) for folder in folders.items() for label in _without_image(*folder)]
    if lone:
        yield f"{len(lone)} label file(s) have no image: {some(lone)}; restore the images"


def _without_image(labels: Path, images: Path) -> list[Path]:
    """Return the label files of a folder that have no image in the other; class names are no labels."""
    if labels == images:
        return []
    names = {path.stem for path in images.iterdir() if path.suffix.lower() in SUFFIXES}
    return sorted(f for f in labels.glob("*.txt") if f.stem not in names and f.name != "classes.txt")


def _description_file(path: Path) -> Path | None:
    """Return the ``data.yaml`` of a data set, None if there is none."""
    if not path.is_dir():
        return path
    return next((path / name for name in DESCRIPTIONS if (path / name).is_file()), None)


def _description_to_write(path: Path) -> str:
    """Name the ``data.yaml`` of a data set for a remedy, or where to make one."""
    return str(_description_file(path) or f"a new file {path / DESCRIPTIONS[0]}")


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
        names = next(filter(None, (read_class_file(root / file) for file in CLASS_FILES)), None)
    if not names or not isinstance(names, list):
        raise FileNotFoundError(
            f"YOLO data set {path} does not name its classes; expected names: [...] in"
            f" {_description_to_write(path)}, or a file {root / CLASS_FILES[0]} with a class in each line"
        )
    count = description.get("nc", len(names))
    if str(count) != str(len(names)):
        raise ValueError(
            f"{path}: nc is {shorten(count)}, but names has {len(names)} classes; correct one of them"
        )
    odd = [name for name in names if isinstance(name, bool) or not isinstance(name, (str, int, float))]
    if odd:
        raise ValueError(f"{path}: YAML reads the class name {shorten(odd[0])} as no text; put it in quotes")
    return [str(name) for name in names]


def _find_split(description: dict[str, Any], root: Path, split: str, path: Path) -> list[Path]:
    """Return the images of a split by name."""
    places: list[Path] = []
    given = description.get(split) if split else None
    if given is not None:
        items = [str(item) for item in (given if isinstance(given, list) else [given])]
        places = [_locate(root, os.path.expanduser(item)) for item in items]
    else:
        known = [key for key in SPLITS if _has_split(description, root, key)]
        if not split and known:
            raise ValueError(
                f"YOLO data set {path} has the splits {some(known)}: say which, such as {path}@{known[0]}"
            )
        candidates = [root / "images" / split, root / split / "images", root / split]
        candidates += [root / f"{split}.txt"] if split else []
        places = [place for place in candidates if os.path.exists(place)][:1]
    if not places or not all(os.path.exists(place) for place in places):
        known = [key for key in SPLITS if _has_split(description, root, key)]
        expected = next((p for p in places if not os.path.exists(p)), root / "images" / split)
        remedy = f"its splits are {', '.join('@' + key for key in known)}" if known else "check its paths"
        raise FileNotFoundError(
            f"YOLO data set {path} has no images for {split or 'no split'!r}: there is no"
            f" {expected!s:.400}; {remedy}"
        )
    files = [file for place in places for file in _images_at(place)]
    if not files:
        raise ValueError(f"{places[0]} has no images; expected files such as *{' *'.join(SUFFIXES[:3])}")
    return files


def _has_split(description: dict[str, Any], root: Path, split: str) -> bool:
    return (
        split in description
        or os.path.isdir(root / "images" / split)
        or os.path.isdir(root / split / "images")
    )


def _locate(root: Path, item: str) -> Path:
    """Return where a path of a description leads; exports often carry paths of another folder.

    Tried are the path itself, from the root, and then its last two parts: one would not tell splits apart.
    """
    parts = [part for part in Path(item).parts if part not in ("..", "/", "\\")]
    places = [root / item, root.joinpath(*parts[-2:])]
    return next((place for place in places if os.path.exists(place)), places[0])


def _images_at(place: Path) -> list[Path]:
    """Return the images of a folder, or those that a text file lists."""
    if os.path.isdir(place):
        return [place / name for name in list_images(place)]
    lines = [os.path.expanduser(line.strip()) for line in read_text(place).splitlines() if line.strip()]
    repeated = [line for line, count in Counter(lines).items() if count > 1]
    if repeated:
        raise ValueError(f"{place} lists {some(repeated[:1])} more than once; remove the repeated lines")
    # The list may be made for another folder: leave out as many first parts of all paths as the first needs.
    parts = Path(lines[0]).parts if lines else ()
    options = [i for i in range(len(parts)) if os.path.exists(place.parent.joinpath(*parts[i:]))]
    first = options[0] if options else 0
    return [place.parent.joinpath(*Path(line).parts[first:]) for line in lines]


def _label_file(image: Path) -> Path:
    """Return where the labels of an image are: beside it, or in ``labels`` for the last ``images``."""
    beside = image.with_suffix(".txt")
    if os.path.isfile(beside):
        return beside
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_labels(
    file: Path, num_classes: int, num_key_values: int, about_key_points: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the class index of each line and the numbers of its box or polygon, in fractions of the sides."""
    if not os.path.isfile(file):
        return
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            yield _read_line(line.split(), num_classes, num_key_values, about_key_points, where)


def _read_line(
    words: list[str], num_classes: int, num_key_values: int, about_key_points: str, where: str
) -> tuple[int, np.ndarray]:
    line = shorten(" ".join(words))
    try:
        values = np.array(words, dtype=np.float64)
    except ValueError:
        values = np.array([np.nan])
    if num_key_values:
        is_known, others = (
            len(values) in (5, 5 + num_key_values),
            f"{num_key_values} values of kpt_shape more",
        )
    else:
        is_known, others = (
            len(values) == 5 or (len(values) >= 7 and len(values) % 2 == 1),
            "class and a polygon",
        )
    if not is_known or not np.isfinite(values).all():
        hint = f"; {about_key_points}" if len(words) > 5 and not num_key_values else ""
        raise ValueError(f"{where}: expected class x y width height, or {others}, got {line}{hint}")
    class_index, numbers = int(values[0]), values[1 : 5 if num_key_values else None]
    if class_index != values[0] or not 0 <= class_index < num_classes:
        raise ValueError(
            f"{where}: class {values[0]:g} is not one of the {num_classes} classes, which count from 0 to"
            f" {num_classes - 1}; correct it, or name the class"
        )
    if np.abs(numbers).max() > LARGEST_FRACTION:
        raise ValueError(
            f"{where}: boxes are fractions of the sides of the image, from 0 to 1, got {line}; divide"
            f" pixels by width and height{'; ' + about_key_points if len(numbers) > 4 else ''}"
        )
    return class_index, numbers


def _box_of(numbers: np.ndarray) -> np.ndarray:
    """Return (x, y, width, height) of a centre and sides, or around a polygon."""
    if len(numbers) == 4:
        center, sides = numbers[:2], numbers[2:]
        return np.concatenate([center - sides / 2, sides])
    points = numbers.reshape(-1, 2)
    return np.concatenate([points.min(0), np.ptp(points, axis=0)])
