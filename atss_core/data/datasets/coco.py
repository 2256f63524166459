"""Read a COCO annotation file and refuse what training would silently learn from or crash on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from atss_core.utils.files import check_regular
from atss_core.utils.text import shorten

_NUM_SHOWN = 5  # ids or names in a message
_LONGEST = 120  # letters of a name in a message
_LARGEST_COORDINATE = 1e9  # pixels; no image is that large, and float32 keeps no pixel of it
_LARGEST_AREA = 1e10  # the metrics of COCO ignore larger objects


@dataclass(frozen=True)
class Annotations:
    """The objects of a file, one row each, ordered by image.

    Attributes:
        ids: int64 (A,).
        image_ids: int64 (A,), ascending.
        category_ids: int64 (A,).
        is_crowd: bool (A,); crowds, ignore regions and difficult objects.
        boxes: (x, y, width, height) in pixels, float64 (A, 4).
    """

    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    is_crowd: np.ndarray
    boxes: np.ndarray

    def __getitem__(self, rows: np.ndarray | slice) -> Annotations:
        return Annotations(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_area(self) -> np.ndarray:
        """Mask of the boxes with a width and a height above 0, bool (A,)."""
        return np.all(self.boxes[:, 2:] > 0, axis=1)


def read_coco_json(name: str, path: Path) -> dict[str, Any]:
    """Parse the annotation file of dataset ``name``; ``check_coco_tree`` checks its images and categories.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON, or not a COCO file.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"dataset {name} needs the annotation file {path}, which does not exist; set DATASETS.DATA_DIR"
            " to the folder that holds the datasets, or link yours into it, such as datasets/coco"
        )
    check_regular(path)
    try:
        tree = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno};"
            " it may be incomplete, fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}; fetch it again") from error
    except RecursionError:
        raise ValueError(
            f"{path}: expected a COCO file, got JSON nested too deeply. Fetch it again."
        ) from None
    except ValueError as error:  # repeated keys, and numbers with more digits than Python converts
        raise ValueError(f"{path}: {error}. Correct it.") from error
    _check_sections(tree, path)
    _drop_placeholder(tree)
    for image in tree["images"]:
        image.pop("unreadable", None)  # the readers of VOC and YOLO set this key
    return tree


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; JSON would keep the last value of a repeated key and drop the others silently."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(
            f"expected each key of an object once, got {shorten(twice)} again in {shorten(entry)}"
        )
    return entry


def _drop_placeholder(tree: dict[str, Any]) -> None:
    """Drop the category 0 that Roboflow puts before the classes: it names their group and has no objects."""
    categories = tree["categories"]
    first = next((entry for entry in categories if entry.get("id") == 0), None)
    if first is None or first.get("supercategory") != "none":
        return
    annotations = tree.get("annotations") or []
    is_used = any(isinstance(entry, dict) and entry.get("category_id") == 0 for entry in annotations)
    if not is_used and any(entry.get("supercategory") == first.get("name") for entry in categories):
        tree["categories"] = [entry for entry in categories if entry is not first]


def check_coco_tree(tree: Any, path: Path) -> None:
    """Check the images and categories of a parsed file.

    Raises:
        ValueError: if it is not a COCO file, or an entry is incomplete or repeated.
    """
    _check_sections(tree, path)
    images, categories = tree["images"], tree["categories"]
    ids = _integers(images, "id", "image", path)
    _check_unique(ids, "image", path)
    for entry in images:
        name = entry.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f'{path}: image {entry["id"]} needs a "file_name", got {shorten(name)}')
    heights, widths = (_integers(images, key, "image", path) for key in ("height", "width"))
    wrong = np.flatnonzero((heights < 1) | (widths < 1))
    if len(wrong):
        i = wrong[0]
        raise ValueError(
            f"{path}: image {ids[i]} must have at least 1x1 pixels, got {widths[i]}x{heights[i]}"
            " (width x height); correct its entry"
        )
    _check_unique(_integers(categories, "id", "category", path), "category", path)
    names = [entry.get("name") for entry in categories]
    for entry, name in zip(categories, names, strict=True):
        if not isinstance(name, str):
            raise ValueError(f'{path}: category {entry["id"]} needs a "name", got {shorten(name)}')
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(
            f"{path}: every category needs a name of its own, but {summarize(repeated)} repeat(s)"
        )


def parse_annotations(tree: dict[str, Any], path: Path) -> Annotations:
    """Return the objects of the tree of a COCO file, none if it has no "annotations".

    Prepares every annotation of the tree for evaluation: sets "iscrowd" to 0 or 1, which is 1 for "ignore" as
    well, and a missing "area" to that of the box.

    Raises:
        ValueError: if an annotation is incomplete, has a malformed box, area or flag, or an unknown image or
            category.
    """
    entries = tree.get("annotations") or []
    ids, image_ids, category_ids = (
        _integers(entries, key, "annotation", path) for key in ("id", "image_id", "category_id")
    )
    for used, section, noun in ((image_ids, "images", "image"), (category_ids, "categories", "category")):
        unknown = np.flatnonzero(~np.isin(used, [entry["id"] for entry in tree[section]]))
        if len(unknown):
            i = unknown[0]
            raise ValueError(
                f"{path}: annotation {ids[i]} has {noun}_id {used[i]}, which is not in the file"
                f" ({len(unknown)} such annotation(s)); add the {noun} or remove the annotation"
            )
    for entry in entries:
        # Polygons take most of the memory of a COCO file and are not used here.
        entry.pop("segmentation", None)
        # The metrics know only crowds, which like ignore regions count neither as hits nor as misses.
        entry["iscrowd"] = int(_flag(entry, "iscrowd", path) or _flag(entry, "ignore", path))
    is_crowd = np.fromiter((entry["iscrowd"] for entry in entries), bool, len(entries))
    boxes = _boxes(entries, ids, path)
    areas = boxes[:, 2:].clip(min=0).prod(axis=1).clip(max=_LARGEST_AREA)
    for entry, area in zip(entries, areas.tolist(), strict=True):
        entry["area"] = area if entry.get("area") is None else _area(entry, path)
    return Annotations(ids, image_ids, category_ids, is_crowd, boxes)[np.argsort(image_ids, kind="stable")]


def _flag(entry: dict[str, Any], key: str, path: Path) -> bool:
    value = entry.get(key)
    if value not in (0, 1, None):  # a string would be true even as "0"
        raise ValueError(
            f'{path}: annotation {entry["id"]} must have 0 or 1 as "{key}", got {shorten(value)}'
        )
    return bool(value)


def _area(entry: dict[str, Any], path: Path) -> float:
    value = entry["area"]
    if type(value) not in (int, float) or not 0 <= value <= _LARGEST_AREA:
        raise ValueError(
            f'{path}: annotation {entry["id"]} must have a number from 0 to {_LARGEST_AREA:g} as "area", got'
            f" {shorten(value)}; correct it, or leave it out to take the area of the box"
        )
    return value


def summarize(items: Sequence[Any] | np.ndarray) -> str:
    """List the first few ids or names for a message."""
    shown = ", ".join(shorten(i) if len(str(i)) > _LONGEST else str(i) for i in items[:_NUM_SHOWN])
    return f"{shown}, ..." if len(items) > _NUM_SHOWN else shown or "none"


def _check_sections(tree: Any, path: Path) -> None:
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold a COCO dictionary, got {type(tree).__name__}")
    for key in ("images", "categories"):
        entries = tree.get(key)
        if not isinstance(entries, list) or not entries:
            raise ValueError(f'{path} is not a COCO file: expected a list "{key}" with at least one entry')
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f'{path}: every entry of "{key}" must be a dictionary')
    annotations = tree.get("annotations")
    if annotations is not None and not isinstance(annotations, list):
        raise ValueError(f'{path}: "annotations" must be a list, got {type(annotations).__name__}')


def _check_unique(ids: np.ndarray, noun: str, path: Path) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        repeated = summarize(values[counts > 1])
        raise ValueError(f"{path}: every {noun} id must be unique, but {repeated} repeat(s)")


def _integers(entries: list[Any], key: str, noun: str, path: Path) -> np.ndarray:
    """Return a field of all entries, int64 (entries,)."""
    values: list[Any] = [entry.get(key) if isinstance(entry, dict) else None for entry in entries]
    for i, value in enumerate(values):
        if type(value) is not int:
            entry = entries[i] if isinstance(entries[i], dict) else {}
            named = f"{noun} {summarize([entry['id']])}" if "id" in entry else f"{noun} no. {i + 1}"
            got = shorten(value) if key in entry else "none"
            raise ValueError(f'{path}: {named} needs a whole number as "{key}", got {got}')
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        largest = shorten(max(values, key=abs))
        raise ValueError(f'{path}: a "{key}" of the {noun}s is too large: {largest}') from None


def _boxes(entries: list[dict[str, Any]], ids: np.ndarray, path: Path) -> np.ndarray:
    """Return all boxes, float64 (entries, 4)."""
    boxes = [entry.get("bbox") for entry in entries]
    if not boxes:
        return np.empty((0, 4))
    try:
        values = np.array(boxes)
    except ValueError:  # of different lengths
        values = np.empty(0)
    if values.shape == (len(boxes), 4) and values.dtype.kind in "iuf":
        values = values.astype(np.float64)
        if (np.abs(values) <= _LARGEST_COORDINATE).all():
            return values
    wrong = next(i for i, box in enumerate(boxes) if not _is_box(box))
    raise ValueError(
        f"{path}: annotation {ids[wrong]} must have 4 finite numbers (x, y, width, height) up to"
        f" {_LARGEST_COORDINATE:g} as bbox, got {shorten(boxes[wrong])}; correct or remove it"
    )


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(type(value) in (int, float) and abs(value) <= _LARGEST_COORDINATE for value in box)
