"""Find defects of a dataset: from its annotations and file names (quick), and from its images (thorough)."""

from __future__ import annotations

import logging
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
from yacs.config import CfgNode

from atss_core.apps.check.statistics import anchor_sizes, best_anchor_iou, image_indices, object_sizes
from atss_core.data import DetectionDataset, UnreadableImageError, resize_size
from atss_core.data.datasets.coco import summarize
from atss_core.data.datasets.dataset import NO_USABLE_OBJECT
from atss_core.data.images import describe_unused_range, has_ambiguous_orientation, has_grey_bits
from atss_core.evaluation.matching import MAX_DETECTIONS
from atss_core.modeling.build import build_anchor_generator, build_assigner
from atss_core.utils.logging import progress
from atss_core.utils.text import printable

logger = logging.getLogger(__name__)

# A box may reach out of its image by this many pixels without a report: whole numbers are rounded.
TOLERANCE = 1.0
# Training drops boxes with a side of one pixel or less, as the published code does.
THINNEST = 1.0
# The largest of 0..255 in an image of 12 bits of which the upper 8 of 16 were kept.
DARKEST = 15
# Sides up to 4 times as long or as short as those of an anchor: IoU with the same centre.
WORST_FIT = 1 / 16
# Headers read before training starts; more would delay it on a network disk.
NUM_HEADERS = 500
# Images on which anchors are assigned; more would take minutes and add nothing.
LARGEST_SAMPLE = 1000

MISSING, UNREADABLE, OVERSIZED = "missing images", "unreadable images", "images above the pixel limit"
WRONG_SIZES, DARK = "wrong sizes", "almost black images"
_SKIP = "set DATALOADER.SKIP_CORRUPT True to skip them"


@dataclass(frozen=True)
class Defect:
    """A fault of some images or objects of a dataset.

    Attributes:
        kind: two or three words.
        message: the fault, its extent, the first cases and the remedy, in one line.
        images: the images that have it, as indices of ``coco_dict["images"]``.
        rows: the objects that have it, as rows of ``dataset.annotations``.
        is_fatal: whether training must not start.
    """

    kind: str
    message: str
    images: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    is_fatal: bool = False


def quick_defects(cfg: CfgNode, dataset: DetectionDataset, num_headers: int = NUM_HEADERS) -> list[Defect]:
    """Find what annotations, file names and some headers tell, including objects that no anchor fits.

    Takes seconds for a million objects, so that training and evaluation can begin with it.
    """
    return [
        *quick_check(dataset),
        *ambiguous_orientations(dataset, num_headers),
        *unused_ranges(dataset),
        *_unfit_objects(cfg, dataset),
        *crowded_images(cfg, dataset),
    ]


def check_dataset(cfg: CfgNode, dataset: DetectionDataset) -> None:
    """Log the defects of a dataset that show in annotations, file names and some image headers.

    Raises:
        ValueError: for a defect with which training must not start.
    """
    defects = quick_defects(cfg, dataset)
    refuse_fatal(dataset.name, defects, skip_corrupt=cfg.DATALOADER.SKIP_CORRUPT)
    for defect in defects:
        logger.warning("%s: %s", dataset.name, defect.message)


def limits_of_metrics(cfg: CfgNode, dataset: DetectionDataset) -> list[Defect]:
    """Find what limits the metrics of a dataset: crowded images, grey values that use few bits."""
    return [*crowded_images(cfg, dataset), *unused_ranges(dataset)]


def log_limits(cfg: CfgNode, dataset: DetectionDataset) -> None:
    """Log what limits the metrics of a dataset."""
    for defect in limits_of_metrics(cfg, dataset):
        logger.warning("%s: %s", dataset.name, defect.message)


def quick_check(dataset: DetectionDataset) -> list[Defect]:
    """Find what the annotations and the list of files tell."""
    return [
        *(Defect("unusual files", line) for line in dataset.warnings),
        *_image_defects(dataset),
        *_box_defects(dataset),
        *_unused_classes(dataset),
    ]


def refuse_fatal(name: str, defects: Sequence[Defect], skip_corrupt: bool) -> None:
    """Raise ValueError for the first defect of dataset ``name`` with which training must not start.

    Missing, unreadable and too large images are none if ``skip_corrupt``.
    """
    skipped = (MISSING, UNREADABLE, OVERSIZED) if skip_corrupt else ()
    for defect in defects:
        if defect.is_fatal and defect.kind not in skipped:
            raise ValueError(f"dataset {name}: {defect.message}")


def missing_objects(dataset: DetectionDataset) -> list[Defect]:
    """Report a dataset without any usable object: an error in training, allowed in evaluation."""
    if any(len(dataset.target(index)) for index in range(len(dataset))):
        return []
    return [Defect("no objects", NO_USABLE_OBJECT.format(dataset.path))]


def _file_names(dataset: DetectionDataset, indices: Sequence[int]) -> str:
    return summarize([dataset.coco_dict["images"][i]["file_name"] for i in indices])


def _unusable_images(dataset: DetectionDataset) -> dict[str, list[int]]:
    """Return the images that are used but missing, present but without a readable size, and too large."""
    images, used = dataset.coco_dict["images"], set(dataset.image_ids)
    listings: dict[Path, set[str]] = {}  # each folder is listed once
    missing = []
    for i, image in enumerate(images):
        path = dataset.folder / image["file_name"]
        if path.parent not in listings:
            listings[path.parent] = set(os.listdir(path.parent)) if os.path.isdir(path.parent) else set()
        # Some file systems ignore case, so ask for what is not listed. Unlike Path.exists, os.path.exists
        # accepts names that are too long for a file.
        if image["id"] in used and path.name not in listings[path.parent] and not os.path.exists(path):
            missing.append(i)
    return {
        MISSING: missing,
        UNREADABLE: sorted(
            {i for i, image in enumerate(images) if "unreadable" in image}.difference(missing)
        ),
        OVERSIZED: [i for i, im in enumerate(images) if im["width"] * im["height"] > dataset.max_pixels],
    }


def _image_defects(dataset: DetectionDataset) -> Iterator[Defect]:
    images = dataset.coco_dict["images"]
    unusable = _unusable_images(dataset)
    for kind, indices in unusable.items():
        if not indices:
            continue
        first, names = images[indices[0]], _file_names(dataset, indices)
        message = {
            MISSING: f"{len(indices)} of {len(dataset)} images are not in {dataset.folder}: {names}; restore "
            f"them, correct their names, or {_SKIP}",
            UNREADABLE: _describe_unreadable(len(indices), len(images), first.get("unreadable")),
            OVERSIZED: f"{len(indices)} of {len(images)} images have more than {dataset.max_pixels} pixels, "
            f"the first {first['width']}x{first['height']}: {names}; cut them into tiles, raise "
            f"INPUT.MAX_PIXELS, or {_SKIP}",
        }[kind]
        yield Defect(kind, message, tuple(indices), is_fatal=True)
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        by_name[image["file_name"]].append(i)
    repeated = {name: indices for name, indices in by_name.items() if len(indices) > 1}
    if repeated:
        message = (
            f"{len(repeated)} image(s) are listed more than once: {summarize(list(repeated))}; the objects of"
            " each entry are background to the other, so merge the entries"
        )
        yield Defect("repeated images", message, tuple(i for indices in repeated.values() for i in indices))


def _describe_unreadable(count: int, total: int, first: str | None) -> str:
    return f"{count} of {total} images cannot be read; the first: {first}; restore them, or {_SKIP}"


def _is_repeated(values: np.ndarray) -> np.ndarray:
    """Tell which rows equal an earlier one, bool (A,)."""
    mask = np.ones(len(values), dtype=bool)
    mask[np.unique(values, axis=0, return_index=True)[1]] = False
    return mask


def _box_defects(dataset: DetectionDataset) -> Iterator[Defect]:
    rows, images, image_idx = dataset.annotations, dataset.coco_dict["images"], image_indices(dataset)
    image_sizes = np.array([(i["width"], i["height"]) for i in images], dtype=np.float64)[image_idx]
    first, last = rows.boxes[:, :2], rows.boxes[:, :2] + rows.boxes[:, 2:]
    inside = np.minimum(last, image_sizes) - np.maximum(first, 0)
    is_outside = (inside <= 0).any(axis=1)
    is_seen = rows.has_area & ~is_outside
    reach = np.maximum(np.maximum(-first, last - image_sizes).max(axis=1, initial=0), 0)
    keys = np.column_stack([rows.image_ids, rows.category_ids, rows.boxes])
    for kind, severity, text in (  # severity: 0 where all is well; the worst cases come first
        ("repeated ids", _is_repeated(rows.ids), "annotation(s) have the id of another; number them anew"),
        (
            "boxes without area",
            ~rows.has_area,
            "box(es) have a width or height of 0 or less and are ignored in training, but count as missed in "
            "evaluation; correct or remove them",
        ),
        (
            "boxes outside",
            rows.has_area & is_outside,
            "box(es) lie wholly outside their image and are ignored; correct or remove them",
        ),
        (
            "boxes reaching out",
            np.where(is_seen & (reach > TOLERANCE), reach, 0),
            "box(es) reach out of their image by more than a pixel and are cut at its border; do the sizes "
            "in the annotations belong to these images?",
        ),
        (
            "boxes one pixel thin",
            is_seen & (inside <= THINNEST).any(axis=1),
            "box(es) are at most one pixel wide or high and are ignored in training; correct or remove them",
        ),
        (
            "repeated boxes",
            _is_repeated(keys),
            "box(es) repeat another of the same class and position; remove the copies",
        ),
    ):
        selected = np.flatnonzero(severity)
        selected = selected[np.argsort(-severity[selected].astype(float), kind="stable")]
        if len(selected):
            cases = tuple(dict.fromkeys(image_idx[selected].tolist()))
            where = f"annotation(s) {summarize(rows.ids[selected])} in {_file_names(dataset, cases)}"
            yield Defect(kind, f"{len(selected)} {text} ({where})", cases, tuple(selected.tolist()))


def _unused_classes(dataset: DetectionDataset) -> Iterator[Defect]:
    used = set(dataset.annotations.category_ids[~dataset.annotations.is_crowd].tolist())
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    unused = [name for category_id, name in pairs if category_id not in used]
    if unused and dataset.has_annotations:
        message = f"{len(unused)} of {dataset.num_classes} classes have no object: {summarize(unused)}"
        yield Defect("classes without objects", message)


def check_images(dataset: DetectionDataset) -> list[Defect]:
    """Read every image, with a progress bar; report damage, darkness and sizes unlike the annotations'.

    Args:
        dataset: opened for testing, so that it has all images.
    """
    present = set(range(len(dataset))).difference(*_unusable_images(dataset).values())

    def problem(index: int) -> tuple[str, str] | None:
        if index not in present:
            return None
        try:
            image = dataset.load_image(index)
        except UnreadableImageError as error:
            return UNREADABLE, str(error).split(" (dataset", 1)[0]
        except ValueError as error:
            return WRONG_SIZES, str(error)
        largest = np.asarray(image).max()
        dark = DARK, f"{dataset.image_path(index)} has no value above {largest} of 255"
        return dark if largest <= DARKEST else None

    cases: dict[str, list[tuple[int, str]]] = defaultdict(list)
    name = f"images of {printable(dataset.name)}"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(problem, range(len(dataset)))
        for index, case in enumerate(tqdm(problems, name, len(dataset), unit="image", disable=None)):
            if case:
                cases[case[0]].append((index, case[1]))
    defects = []
    for kind, entries in cases.items():
        count, first = f"{len(entries)} of {len(dataset)} images", entries[0][1]
        message = {
            UNREADABLE: _describe_unreadable(len(entries), len(dataset), first),
            WRONG_SIZES: f"{count} have another size than their annotations; the first: {first}",
            DARK: f"{count} are almost black; the first: {first}; files of 16 bits are read so if their"
            " values take up fewer: for grey ones set INPUT.GREY_BITS, convert colour ones to 8 bits",
        }[kind]
        defects.append(Defect(kind, message, tuple(index for index, _ in entries), is_fatal=kind != DARK))
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
    return [Defect("unused range", f"in {len(steps)} sampled images, {reason}")] if reason else []


def ambiguous_orientations(dataset: DetectionDataset, most: int) -> list[Defect]:
    """Report images whose EXIF orientation keeps their size: boxes may be for the stored or the shown image.

    Args:
        dataset: opened for training or testing.
        most: number of headers to read, evenly spread.
    """
    images = dataset.coco_dict["images"]

    def is_ambiguous(index: int) -> bool:
        try:
            return has_ambiguous_orientation(dataset.folder / images[index]["file_name"])
        except UnreadableImageError:
            return False  # reported elsewhere

    indices = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int).tolist()
    cases = () if dataset.is_upright else tuple(filter(is_ambiguous, indices))
    message = (
        f"{len(cases)} of {len(indices)} sampled images are turned or flipped by their EXIF data and keep"
        " their size, so that it does not tell whether boxes are for the images as shown or as stored; they"
        f" are taken as shown: {_file_names(dataset, cases)}; look at the boxes that atss check draws, and if"
        " they are wrong, remove the EXIF orientation from the files"
    )
    return [Defect("ambiguous orientation", message, cases)] if cases else []


def crowded_images(cfg: CfgNode, dataset: DetectionDataset) -> list[Defect]:
    """Report images with more objects than detections count: even a perfect detector misses some."""
    rows, images = dataset.annotations, dataset.coco_dict["images"]
    is_object = ~rows.is_crowd & rows.has_area
    image_idx = image_indices(dataset)[is_object]
    pairs = np.column_stack([image_idx, rows.category_ids[is_object]])
    pairs, per_class = np.unique(pairs, axis=0, return_counts=True)
    in_image = np.arange(len(images)), np.bincount(image_idx, minlength=len(images))
    per_image = cfg.TEST.DETECTIONS_PER_IMG or np.inf
    defects = []
    for limit, (index, counts), text in (
        (
            MAX_DETECTIONS,
            (pairs[:, 0], per_class),
            "objects of a class ({}): the metrics of COCO count no more detections of a class per image "
            "(maxDets), so that AP stays below 100 even if all are detected; cut such images into tiles, or "
            "compare AP between detectors",
        ),
        (
            per_image,
            in_image,
            "objects ({}): TEST.DETECTIONS_PER_IMG keeps no more detections per image; raise it, or set it "
            "to 0 for all",
        ),
        (
            cfg.MODEL.ATSS.PRE_NMS_TOP_N,
            in_image,
            "objects ({}): MODEL.ATSS.PRE_NMS_TOP_N lets no more candidates per level into the NMS; raise it",
        ),
    ):
        order = np.argsort(-counts, kind="stable")
        cases = tuple(dict.fromkeys(index[order[counts[order] > limit]].tolist()))
        if cases:
            where = text.format(f"up to {counts.max()} in {_file_names(dataset, cases)}")
            message = f"{len(cases)} image(s) have more than {limit} {where}"
            defects.append(Defect("more objects than detections", message, cases))
    return defects


def _unfit_objects(cfg: CfgNode, dataset: DetectionDataset) -> Iterator[Defect]:
    """Report the objects that no anchor size fits, the worst first."""
    rows = dataset.annotations
    # Thinner objects are not used, and reported elsewhere.
    candidates = np.flatnonzero(~rows.is_crowd & (rows.boxes[:, 2:] > THINNEST).all(axis=1))
    sizes, anchors = object_sizes(cfg, dataset), anchor_sizes(cfg)
    fit = best_anchor_iou(sizes[candidates], anchors)
    order = np.argsort(fit, kind="stable")
    unfit = candidates[order[fit[order] < WORST_FIT]]
    if len(unfit):
        images = tuple(dict.fromkeys(image_indices(dataset)[unfit].tolist()))
        sides, anchor_sides = (np.sqrt(s.prod(axis=1)) for s in (sizes[unfit], anchors))
        message = (
            f"{len(unfit)} object(s), {100 * len(unfit) / np.count_nonzero(~rows.is_crowd):.1f}%, are far"
            f" from every anchor size: sides of {sides.min():.0f} to {sides.max():.0f} pixels on the"
            f" network's input, anchors of {anchor_sides.min():.0f} to {anchor_sides.max():.0f} (in"
            f" {_file_names(dataset, images)}); change INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST, or"
            " MODEL.ATSS.ANCHOR_SIZES"
        )
        yield Defect("objects that no anchor size fits", message, images, tuple(unfit.tolist()))


def unmatched_objects(cfg: CfgNode, dataset: DetectionDataset) -> Iterator[Defect]:
    """Assign anchors on images of the network's size, and report the unmatched objects."""
    generator, assigner = build_anchor_generator(cfg), build_assigner(cfg)
    indices = range(len(dataset))
    if len(indices) > LARGEST_SAMPLE:
        indices = np.random.default_rng(0).choice(len(dataset), LARGEST_SAMPLE, replace=False).tolist()
    num_objects, unmatched = 0, list[int]()
    for index in progress(indices, f"anchors on {dataset.name}"):
        target = dataset.target(index)
        if not len(target):
            continue
        size = resize_size(target.image_size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        (matched,) = assigner(generator.for_image(size), [target.resize(size).boxes])
        num_objects += len(target)
        missed = np.setdiff1d(np.arange(len(target)), matched.numpy())
        if len(missed):
            unmatched += dataset.target_rows(index)[missed].tolist()
    if unmatched:
        images = tuple(dict.fromkeys(image_indices(dataset)[unmatched].tolist()))
        message = (
            f"{len(unmatched)} of {num_objects} objects are unmatched (POSITIVE_TYPE "
            f"{cfg.MODEL.ATSS.POSITIVE_TYPE} gives them no anchor) and are not learned: too small for the"
            f" grid, or behind others (in {_file_names(dataset, images)}); larger images"
            " (INPUT.MIN_SIZE_TRAIN) or other anchors help"
        )
        yield Defect("unmatched objects", message, images, tuple(unmatched))
