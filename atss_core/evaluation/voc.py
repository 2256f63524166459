"""Pascal VOC's metric: average precision at IoU 0.5, by the rules of 2007 and of 2010.

M. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, and the
development kit of VOC 2012, section 3.4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

IOU_THRESHOLD = 0.5
UNDEFINED = -1.0
# k / 10, so that a recall of 3 / 10 reaches the level 0.3. The published implementation takes k * 0.1, which
# is larger at 0.3, 0.6 and 0.7 (0.30000000000000004, ...): a recall that equals the level does not reach it.
_LEVELS = np.arange(11) / 10


@dataclass(frozen=True)
class VocMetrics:
    """AP of each class at IoU 0.5 in 0..1, -1 where there is no ground truth to measure against.

    Attributes:
        eleven_point: the rule of 2007, the mean precision at recalls 0, 0.1, ..., 1, see ``_LEVELS``.
        area: the rule from 2010 on, the area under the precision, made to fall with recall.
    """

    eleven_point: dict[str, float]
    area: dict[str, float]

    @property
    def overall(self) -> dict[str, float]:
        """Return the means over the classes that have objects."""
        return {"AP50_11point": _mean(self.eleven_point), "AP50_area": _mean(self.area)}

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain dictionaries, ready for JSON."""
        return {
            "overall": self.overall,
            "per_class_11point": dict(self.eleven_point),
            "per_class_area": dict(self.area),
        }

    def line(self) -> str:
        """Return both means in percent as text."""
        eleven_point, area = (_percent(value) for value in self.overall.values())
        return f"VOC at IoU 0.5: mAP {eleven_point} by the 11 points of 2007, {area} by the area of 2010"


def evaluate_voc(
    annotations: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    category_ids: Sequence[int],
    class_names: Sequence[str],
) -> VocMetrics:
    """Measure detections.

    A detection belongs to the object of its class that it overlaps most, if their IoU is at least 0.5. The
    best scored detection of an object is right, further ones are wrong; those of difficult objects
    ("iscrowd") do not count at all. Pixels are inclusive, as in VOC's kit.

    Args:
        annotations: the ground truth with image_id, category_id, bbox (x, y, width, height) and iscrowd or
            ignore.
        results: the detections with image_id, category_id, bbox and score.
        category_ids: of the classes.
        class_names: in the same order.
    """
    gt_boxes, gt_images, gt_classes = _columns(annotations)
    flags = [bool(entry.get("iscrowd") or entry.get("ignore")) for entry in annotations]
    is_difficult = np.array(flags, dtype=bool)
    boxes, images, classes = _columns(results)
    scores = np.array([entry["score"] for entry in results], dtype=np.float64)
    owner = _match(boxes, images, classes, gt_boxes, gt_images, gt_classes)
    counts = ~np.append(is_difficult, False)[owner]  # owner -1 is the one that was appended
    order = np.argsort(-scores, kind="stable")
    eleven_point, area = {}, {}
    for category_id, name in zip(category_ids, class_names, strict=True):
        num_objects = int(np.count_nonzero((gt_classes == category_id) & ~is_difficult))
        ranked = order[(classes[order] == category_id) & counts[order]]
        curve = _curve(owner[ranked], num_objects)
        eleven_point[name], area[name] = _eleven_point(*curve), _area(*curve)
    return VocMetrics(eleven_point, area)


def _columns(entries: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (x, y, width, height), image ids and category ids of all entries."""
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    images = np.array([entry["image_id"] for entry in entries], dtype=np.int64)
    return boxes, images, np.array([entry["category_id"] for entry in entries], dtype=np.int64)


def _match(
    boxes: np.ndarray,
    images: np.ndarray,
    classes: np.ndarray,
    gt_boxes: np.ndarray,
    gt_images: np.ndarray,
    gt_classes: np.ndarray,
) -> np.ndarray:
    """Return the object that each detection belongs to, -1 for none; int64 (detections,)."""
    owner = np.full(len(boxes), -1, dtype=np.int64)
    by_image, truth_by_image = _rows_by_image(images), _rows_by_image(gt_images)
    for image_id, rows in by_image.items():
        ground_truth = truth_by_image.get(image_id)
        if ground_truth is None:
            continue
        ious = _iou(boxes[rows][:, None], gt_boxes[ground_truth])
        ious = np.where(classes[rows][:, None] == gt_classes[ground_truth], ious, -1.0)
        best = ious.argmax(axis=1)
        is_match = ious[np.arange(len(rows)), best] >= IOU_THRESHOLD
        owner[rows[is_match]] = ground_truth[best[is_match]]
    return owner


def _rows_by_image(images: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(images, kind="stable")
    ids, starts = np.unique(images[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(ids) else {}


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes (x, y, width, height) that broadcast against each other."""
    start = np.maximum(first[..., :2], second[..., :2])
    end = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    overlap = np.prod(np.maximum(end - start, 0), axis=-1)
    union = np.prod(first[..., 2:], axis=-1) + np.prod(second[..., 2:], axis=-1) - overlap
    return np.where(union > 0, overlap / np.where(union > 0, union, 1.0), 0.0)


def _curve(owners: np.ndarray, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision after each detection by falling score; NaN if there is nothing to find."""
    is_first = np.zeros(len(owners), dtype=bool)
    is_first[np.unique(owners, return_index=True)[1]] = True
    is_right = is_first & (owners >= 0)
    if not num_objects:
        return np.array([np.nan]), np.array([np.nan])
    num_right = np.cumsum(is_right)
    return num_right / num_objects, num_right / np.arange(1, len(owners) + 1)


def _eleven_point(recall: np.ndarray, precision: np.ndarray) -> float:
    if np.isnan(recall).any():
        return UNDEFINED
    return float(np.mean([precision[recall >= level].max(initial=0.0) for level in _LEVELS]))


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    if np.isnan(recall).any():
        return UNDEFINED
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * falling))


def _mean(values: dict[str, float]) -> float:
    defined = [value for value in values.values() if value != UNDEFINED]
    return float(np.mean(defined)) if defined else UNDEFINED


def _percent(value: float) -> str:
    return "-" if value == UNDEFINED else f"{100 * value:.1f}"
