"""Libraries that compute the COCO metrics: pycocotools, the referee, and faster ones with equal results."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from atss_core.utils.extras import require

logger = logging.getLogger(__name__)

AUTO = "auto"
AREAS = ("all", "small", "medium", "large")
IOU_50, IOU_75 = 0, 5  # of the ten thresholds 0.5, 0.55, ..., 0.95

Entries = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """The arrays of COCOeval; -1 without ground truth.

    T are the ten IoU thresholds, R the 101 recalls 0, 0.01, ..., 1, C the classes by ascending category id;
    the four areas are ``AREAS``. All but ``stats`` use up to 100 detections per class and image.

    Attributes:
        stats: the twelve metrics, shape (12,).
        precision: interpolated, shape (T, R, C, 4).
        recall: maximum, shape (T, C, 4).
        category_ids: of the classes.
        backend: the library that was used.
    """

    stats: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    category_ids: Sequence[int]
    backend: str


def choose_backend(name: str) -> str:
    """Return the library for a value of TEST.COCO_EVAL; "auto" is the fastest in a verified version.

    Raises:
        ValueError: if there is no such library or it is not installed.
    """
    if name == AUTO:
        return next((library for library in VERIFIED if _is_verified(library)), "pycocotools")
    if name not in BACKENDS:
        raise ValueError(f"TEST.COCO_EVAL: expected one of {', '.join((AUTO, *BACKENDS))}, got {name!r}.")
    if name == "faster_coco_eval":
        require(name)
    return name


def measure(
    backend: str,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    ground_truth: Entries,
    detections: Entries,
) -> Measured:
    """Measure detections with a library.

    Args:
        backend: one of ``BACKENDS``.
        image_ids: the images to measure on; entries of others do not count.
        category_ids: the classes to measure; entries of others do not count.
        ground_truth: annotations with "image_id", "category_id", "bbox", "area" and "iscrowd".
        detections: COCO results, with "image_id", "category_id", "bbox" and "score".
    """
    if not all(math.isfinite(entry["score"]) for entry in detections):
        # The others order such scores differently, or refuse them.
        logger.warning("some scores are not finite: measured with pycocotools")
        backend = "pycocotools"
    ids = sorted(category_ids)  # as pycocotools orders them
    # Ids from 1: hotcoco refuses negative ids, faster_coco_eval confuses very large ones.
    class_numbers = {category_id: number for number, category_id in enumerate(ids, start=1)}
    image_numbers = {image_id: number for number, image_id in enumerate(sorted(image_ids), start=1)}
    images = [{"id": number} for number in image_numbers.values()]
    categories = [{"id": number, "name": str(number)} for number in class_numbers.values()]

    def tree(entries: Entries) -> dict[str, Any]:
        # pycocotools takes a match with annotation id 0 for no match, so all are renumbered from 1.
        known = (e for e in entries if e["image_id"] in image_numbers and e["category_id"] in class_numbers)
        annotations = [
            {
                "area": entry["bbox"][2] * entry["bbox"][3],
                "iscrowd": 0,
                **entry,
                "id": number,
                "image_id": image_numbers[entry["image_id"]],
                "category_id": class_numbers[entry["category_id"]],
            }
            for number, entry in enumerate(known, start=1)
        ]
        return {"images": images, "categories": categories, "annotations": annotations}

    with _log_stdout():
        evaluation = BACKENDS[backend](tree(ground_truth), tree(detections))
        evaluation.params.imgIds = [image["id"] for image in images]
        evaluation.params.catIds = [category["id"] for category in categories]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return Measured(
        stats=np.asarray(evaluation.stats, dtype=np.float64)[:12],
        precision=np.asarray(evaluation.eval["precision"])[..., -1],
        recall=np.asarray(evaluation.eval["recall"])[..., -1],
        category_ids=ids,
        backend=backend,
    )


def _is_verified(library: str) -> bool:
    """Tell whether a library is installed in a version that the tests have compared with pycocotools."""
    try:
        version = metadata.version(library.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return False
    major, minor = VERIFIED[library]
    if (major, minor) <= tuple(int(number) for number in version.split(".")[:2]) < (major + 1, 0):
        return True
    logger.info("%s %s is not used: TEST.COCO_EVAL auto needs %d.%d or newer", library, version, major, minor)
    return False


def _hotcoco(ground_truth: dict[str, Any], detections: dict[str, Any]) -> Any:
    return hotcoco.COCOeval(hotcoco.COCO(ground_truth), hotcoco.COCO(detections), "bbox")


def _faster_coco_eval(ground_truth: dict[str, Any], detections: dict[str, Any]) -> Any:
    library = require("faster_coco_eval")
    indexed = (_indexed(library.COCO(), tree) for tree in (ground_truth, detections))
    return library.COCOeval_faster(*indexed, "bbox", print_function=lambda *_: None)


def _pycocotools(ground_truth: dict[str, Any], detections: dict[str, Any]) -> Any:
    # Not COCO.loadRes: it fails on an empty list.
    return COCOeval(_indexed(COCO(), ground_truth), _indexed(COCO(), detections), "bbox")


def _indexed(coco: Any, tree: dict[str, Any]) -> Any:
    coco.dataset = tree
    coco.createIndex()
    return coco


# tests/evaluation/test_backends.py compares each with pycocotools: hotcoco is equal to the last bit,
# faster_coco_eval to 1e-12; benchmarks/coco_eval.py measures their speed.
BACKENDS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "hotcoco": _hotcoco,
    "faster_coco_eval": _faster_coco_eval,
    "pycocotools": _pycocotools,
}
# Major and minimum minor version for "auto", the fastest first.
VERIFIED = {"hotcoco": (1, 3), "faster_coco_eval": (1, 8)}


@contextlib.contextmanager
def _log_stdout() -> Iterator[None]:
    """Redirect the output of the libraries to the log, at debug level."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield
    for line in printed.getvalue().splitlines():
        logger.debug("%s", line.rstrip())
