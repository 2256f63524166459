"""Find what is wrong with a data set, from what its files say (quick) and from its images (thorough)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from atss_core.data.dataset import NOTHING_TO_LEARN, DetectionDataset
from atss_core.data.datasets.coco import some
from atss_core.data.images import (
    UnreadableImageError,
    describe_unused_range,
    has_ambiguous_orientation,
    has_grey_bits,
)
from atss_core.utils.text import printable

# A box may reach out of its image by so many pixels without being reported: whole numbers are rounded.
TOLERANCE = 1.0
# Training drops boxes with a side of one pixel or less, as the published code does.
THINNEST = 1.0

MISSING = "missing images"
UNREADABLE = "unreadable images"
OVERSIZED = "images above the pixel limit"
WRONG_SIZES = "wrong sizes"
DARK = "almost black images"
# The largest of 0..255 in an image of 12 bits of which the upper 8 of 16 were kept.
DARKEST = 15


@dataclass(frozen=True)
class Defect:
    """Something wrong with some images or objects of a data set.

    Attributes:
        kind: what, in two or three words.
        message: what, how much, the first cases and the remedy, in one line.
        images: the images it is in, as entries of ``coco_dict["images"]``.
        rows: the objects that it is about, as rows of ``dataset.annotations``.
        is_fatal: whether training must not begin.
    """

    kind: str
    message: str
    images: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    is_fatal: bool = False


def quick_check(dataset: DetectionDataset) -> list[Defect]:
    """Find what the annotations and the list of files tell; takes seconds for a million objects."""
    objects = _Objects(dataset)
    found = [
        *(Defect("odd files", line) for line in dataset.warnings),
        _missing_images(dataset),
        _unreadable_images(dataset),
        _oversized_images(dataset),
        _repeated_images(dataset),
        objects.defect(
            "repeated ids", objects.has_repeated_id, "annotation(s) have the id of another; number them anew"
        ),
        objects.defect(
            "boxes without area",
            ~objects.has_area,
            "box(es) have a width or height of 0 or less and are ignored in training, but count as missed in "
            "evaluation; correct or remove them",
        ),
        objects.defect(
            "boxes outside",
            objects.has_area & objects.is_outside,
            "box(es) lie wholly outside their image and are ignored; correct or remove them",
        ),
        objects.defect(
            "boxes reaching out",
            objects.has_area & ~objects.is_outside & (objects.reach > TOLERANCE),
            "box(es) reach out of their image by more than a pixel and are cut at its border; do the sizes "
            "in the annotations belong to these images?",
            worst=objects.reach,
        ),
        objects.defect(
            "boxes one pixel thin",
            objects.has_area & ~objects.is_outside & objects.is_thin,
            "box(es) are at most one pixel wide or high and are ignored in training; correct or remove them",
        ),
        objects.defect(
            "repeated boxes",
            objects.is_repeated,
            "box(es) repeat another of the same class and place; remove the copies",
        ),
        _classes_without_objects(dataset),
    ]
    return [defect for defect in found if defect is not None]


def nothing_to_learn(dataset: DetectionDataset) -> list[Defect]:
    """Report a data set that cannot be trained on for want of objects; for testing it may be meant so."""
    if any(len(dataset.target(index)) for index in range(len(dataset))):
        return []
    return [Defect("no objects", NOTHING_TO_LEARN.format(dataset.path))]


def check_images(dataset: DetectionDataset) -> list[Defect]:
    """Read every image for damage, darkness and sizes unlike those of the annotations, with a progress bar.

    Args:
        dataset: opened for testing, so that it has all images.
    """
    known = (_missing(dataset), _unreadable(dataset), _oversized(dataset))
    present = set(range(len(dataset))).difference(*known)

    def problem(index: int) -> tuple[str, str] | None:
        if index not in present:
            return None
        try:
            image = dataset.load_image(index)
        except UnreadableImageError as error:
            return UNREADABLE, str(error).split(" (data set", 1)[0]
        except ValueError as error:
            return WRONG_SIZES, str(error)
        largest = np.asarray(image).max()
        if largest > DARKEST:
            return None
        return DARK, f"{dataset.image_path(index)} has no value above {largest} of 255"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(
            tqdm(
                pool.map(problem, range(len(dataset))),
                total=len(dataset),
                desc=f"images of {printable(dataset.name)}",
                unit="image",
                disable=None,
            )
        )
    by_kind: dict[str, list[int]] = defaultdict(list)
    for index, found in enumerate(problems):
        if found is not None:
            by_kind[found[0]].append(index)
    defects = []
    for kind, indices in by_kind.items():
        first = problems[indices[0]]
        assert first is not None
        count = f"{len(indices)} of {len(dataset)} images"
        message = {
            UNREADABLE: _describe_unreadable(len(indices), len(dataset), first[1]),
            WRONG_SIZES: f"{count} have another size than their annotations; the first: {first[1]}",
            DARK: f"{count} are almost black; the first: {first[1]}; files of 16 bits are read so if their"
            " values take up fewer: for grey ones set INPUT.GREY_BITS, convert colour ones to 8 bits",
        }[kind]
        defects.append(Defect(kind, message, tuple(indices), is_fatal=kind != DARK))
    return defects


def unused_ranges(dataset: DetectionDataset, most: int = 16) -> list[Defect]:
    """Report grey images of more than 8 bits that are dark because their values use fewer bits than the file.

    Args:
        dataset: opened for training or testing.
        most: read so many of its images, evenly spread.
    """

    def load(indices: Iterable[int]) -> Iterator[Image.Image]:
        for index in indices:
            with suppress(ValueError):  # which has a report of its own
                if has_grey_bits(dataset.image_path(index)):
                    yield dataset.load_image(index)

    steps = np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int).tolist()
    reason = describe_unused_range(load(steps))
    return [Defect("unused range", f"in {len(steps)} images looked at, {reason}")] if reason else []


def ambiguous_orientations(dataset: DetectionDataset, most: int) -> list[Defect]:
    """Report images that EXIF data turn or mirror without a change of size: boxes may belong to either.

    Args:
        dataset: opened for training or testing.
        most: read the headers of so many images, evenly spread.
    """
    images = dataset.coco_dict["images"]
    if dataset.is_upright:
        return []

    def is_ambiguous(index: int) -> bool:
        try:
            return has_ambiguous_orientation(dataset.folder / images[index]["file_name"])
        except UnreadableImageError:
            return False  # which has a report of its own

    steps = np.linspace(0, len(images) - 1, min(most, len(images)))
    found = tuple(index for index in steps.round().astype(int).tolist() if is_ambiguous(index))
    if not found:
        return []
    message = (
        f"{len(found)} of {len(steps)} images looked at are turned or flipped by their EXIF data and keep"
        " their size, so that it does not tell whether boxes are for the images as shown or as stored; they"
        f" are taken as shown: {some([images[i]['file_name'] for i in found])}; look at the boxes that atss"
        " check draws, and if they are wrong, remove the EXIF orientation from the files"
    )
    return [Defect("ambiguous orientation", message, found)]


def refuse_fatal(name: str, defects: Sequence[Defect], skip_corrupt: bool) -> None:
    """Raise for the first defect with which training must not begin.

    Args:
        name: of the data set.
        defects: as ``quick_check`` and ``check_images`` return.
        skip_corrupt: whether missing, unreadable and too large images are to be skipped.

    Raises:
        ValueError: if there is one.
    """
    for defect in defects:
        can_skip = skip_corrupt and defect.kind in (MISSING, UNREADABLE, OVERSIZED)
        if defect.is_fatal and not can_skip:
            raise ValueError(f"data set {name}: {defect.message}")


class _Objects:
    """What is true of each object of a data set: bool or float64 (A,), by the rows of its annotations."""

    def __init__(self, dataset: DetectionDataset) -> None:
        rows = dataset.annotations
        images = dataset.coco_dict["images"]
        self.dataset = dataset
        self.owner = np.searchsorted([image["id"] for image in images], rows.image_ids)
        sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64)[
            self.owner
        ]
        first, last = rows.boxes[:, :2], rows.boxes[:, :2] + rows.boxes[:, 2:]
        inside = np.minimum(last, sizes) - np.maximum(first, 0)
        self.has_area = rows.has_area
        self.is_outside = (inside <= 0).any(axis=1)
        self.is_thin = (inside <= THINNEST).any(axis=1)
        self.reach = np.maximum(np.maximum(-first, last - sizes).max(axis=1, initial=0), 0)
        self.has_repeated_id = np.ones(len(rows), dtype=bool)
        self.has_repeated_id[np.unique(rows.ids, return_index=True)[1]] = False
        self.is_repeated = np.ones(len(rows), dtype=bool)
        keys = np.column_stack([rows.image_ids, rows.category_ids, rows.boxes])
        self.is_repeated[np.unique(keys, axis=0, return_index=True)[1]] = False

    def defect(
        self, kind: str, mask: np.ndarray, words: str, worst: np.ndarray | None = None
    ) -> Defect | None:
        """Describe the objects of a mask, (A,) bool, by falling ``worst``, (A,); None if there are none."""
        rows = np.flatnonzero(mask)
        if worst is not None:
            rows = rows[np.argsort(-worst[rows], kind="stable")]
        if not len(rows):
            return None
        images = list(dict.fromkeys(self.owner[rows].tolist()))
        files = [self.dataset.coco_dict["images"][i]["file_name"] for i in images]
        where = f"annotation(s) {some(self.dataset.annotations.ids[rows])} in {some(files)}"
        return Defect(kind, f"{len(rows)} {words} ({where})", tuple(images), tuple(rows.tolist()))


def _missing(dataset: DetectionDataset) -> list[int]:
    """Return the images that are used and have no file, listing each folder once."""
    listings: dict[Path, set[str]] = {}
    missing = []
    used = set(dataset.image_ids)
    for i, image in enumerate(dataset.coco_dict["images"]):
        path = dataset.folder / image["file_name"]
        if path.parent not in listings:
            listings[path.parent] = set(os.listdir(path.parent)) if os.path.isdir(path.parent) else set()
        # Not every file system tells names apart as strings do, so what is not listed is asked for. Unlike
        # Path.exists, os.path.exists takes names that are too long for one.
        if image["id"] in used and path.name not in listings[path.parent] and not os.path.exists(path):
            missing.append(i)
    return missing


def _missing_images(dataset: DetectionDataset) -> Defect | None:
    missing = _missing(dataset)
    if not missing:
        return None
    images = dataset.coco_dict["images"]
    names = [images[i]["file_name"] for i in missing]
    message = (
        f"{len(missing)} of {len(dataset)} images are not in {dataset.folder}: {some(names)}; restore them,"
        " correct their names, or set DATALOADER.SKIP_CORRUPT True to skip them"
    )
    return Defect(MISSING, message, tuple(missing), is_fatal=True)


def _unreadable(dataset: DetectionDataset) -> list[int]:
    """Return the images that could not be read for their sizes, and are there."""
    unreadable = [i for i, image in enumerate(dataset.coco_dict["images"]) if "unreadable" in image]
    missing = set(_missing(dataset)) if unreadable else set()
    return [i for i in unreadable if i not in missing]


def _unreadable_images(dataset: DetectionDataset) -> Defect | None:
    unreadable = _unreadable(dataset)
    if not unreadable:
        return None
    images = dataset.coco_dict["images"]
    message = _describe_unreadable(len(unreadable), len(images), images[unreadable[0]]["unreadable"])
    return Defect(UNREADABLE, message, tuple(unreadable), is_fatal=True)


def _oversized(dataset: DetectionDataset) -> list[int]:
    images = dataset.coco_dict["images"]
    return [i for i, image in enumerate(images) if image["width"] * image["height"] > dataset.max_pixels]


def _oversized_images(dataset: DetectionDataset) -> Defect | None:
    oversized = _oversized(dataset)
    if not oversized:
        return None
    images = [dataset.coco_dict["images"][i] for i in oversized]
    first = images[0]
    message = (
        f"{len(images)} of {len(dataset.coco_dict['images'])} images have more than {dataset.max_pixels}"
        f" pixels, the first {first['width']}x{first['height']}: {some([i['file_name'] for i in images])};"
        " cut them into tiles, raise INPUT.MAX_PIXELS, or set DATALOADER.SKIP_CORRUPT True to skip them"
    )
    return Defect(OVERSIZED, message, tuple(oversized), is_fatal=True)


def _describe_unreadable(count: int, total: int, first: str) -> str:
    return (
        f"{count} of {total} images cannot be read; the first: {first}; restore them, or set"
        " DATALOADER.SKIP_CORRUPT True to skip them"
    )


def _repeated_images(dataset: DetectionDataset) -> Defect | None:
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(dataset.coco_dict["images"]):
        by_name[image["file_name"]].append(i)
    repeated = {name: rows for name, rows in by_name.items() if len(rows) > 1}
    if not repeated:
        return None
    message = (
        f"{len(repeated)} image(s) are listed more than once: {some(list(repeated))}; the objects of each"
        " entry are background to the other, so join the entries"
    )
    return Defect("repeated images", message, tuple(i for rows in repeated.values() for i in rows))


def _classes_without_objects(dataset: DetectionDataset) -> Defect | None:
    used = set(dataset.annotations.category_ids[~dataset.annotations.is_crowd].tolist())
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    unused = [name for category_id, name in pairs if category_id not in used]
    if not unused or not dataset.has_annotations:
        return None
    message = f"{len(unused)} of {dataset.num_classes} classes have no object: {some(unused)}"
    return Defect("classes without objects", message)
