"""Pascal VOC's metric: average precision at IoU 0.5, as defined in 2007 and from 2010 on.

M. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, and the
development kit of VOC 2012, section 3.4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atss_core.evaluation.matching import NO_MATCH, Boxes, match_to_largest_iou
from atss_core.evaluation.metrics import UNDEFINED, mean_defined, percent

# k / 10, so that a recall of 3 / 10 reaches the level 0.3. The published implementation takes k * 0.1, which
# is larger at 0.3, 0.6 and 0.7 (0.30000000000000004, ...): a recall that equals the level does not reach it.
_LEVELS = np.arange(11) / 10


@dataclass(frozen=True)
class VocMetrics:
    """AP per class at IoU 0.5 in 0..1, -1 without ground truth.

    Attributes:
        eleven_point: VOC 2007, the mean precision at recalls 0, 0.1, ..., 1, see ``_LEVELS``.
        area: VOC 2010, the area under the curve of precision, made monotonically decreasing, over recall.
    """

    eleven_point: dict[str, float]
    area: dict[str, float]

    @property
    def overall(self) -> dict[str, float]:
        """Return the means over the classes that have ground truth."""
        return {
            "AP50_11point": mean_defined(list(self.eleven_point.values())),
            "AP50_area": mean_defined(list(self.area.values())),
        }

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain dictionaries, ready for JSON."""
        return {
            "overall": self.overall,
            "per_class_11point": dict(self.eleven_point),
            "per_class_area": dict(self.area),
        }

    def line(self) -> str:
        """Return both means in percent as text."""
        eleven_point, area = (percent(value) for value in self.overall.values())
        return f"VOC at IoU 0.5: mAP {eleven_point} by the 11 points of 2007, {area} by the area of 2010"


def evaluate_voc(
    annotations: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    category_ids: Sequence[int],
    class_names: Sequence[str],
) -> VocMetrics:
    """Measure detections.

    A detection matches the ground truth of its class with the largest IoU, if that is at least 0.5. The
    detection with the highest score is the true positive of its ground truth, further ones are false
    positives; those of difficult objects ("iscrowd") do not count. Pixels are inclusive, as in VOC's kit.

    Args:
        annotations: ground truth with image_id, category_id, bbox and iscrowd or ignore.
        results: detections with image_id, category_id, bbox and score.
        category_ids: of the classes.
        class_names: in the same order.
    """
    image_ids = sorted({entry["image_id"] for entry in (*annotations, *results)})
    gt, detections = (Boxes.read(entries, image_ids, category_ids) for entries in (annotations, results))
    matched_idx = match_to_largest_iou(gt, detections)
    order = np.argsort(-detections.scores, kind="stable")
    order = order[~np.append(gt.is_crowd, False)[matched_idx[order]]]  # NO_MATCH is the appended entry
    eleven_point, area = {}, {}
    for label, name in enumerate(class_names):
        num_gt = int(np.count_nonzero((gt.classes == label) & ~gt.is_crowd))
        ranked = matched_idx[order[detections.classes[order] == label]]
        eleven_point[name], area[name] = _average_precisions(ranked, num_gt)
    return VocMetrics(eleven_point, area)


def _average_precisions(matched_idx: np.ndarray, num_gt: int) -> tuple[float, float]:
    """Return AP by the eleven points and by the area for the matches of detections by falling score."""
    if not num_gt:
        return UNDEFINED, UNDEFINED
    is_true = np.zeros(len(matched_idx), dtype=bool)
    is_true[np.unique(matched_idx, return_index=True)[1]] = True
    num_true = np.cumsum(is_true & (matched_idx != NO_MATCH))
    recall, precision = num_true / num_gt, num_true / np.arange(1, len(matched_idx) + 1)
    eleven_point = np.mean([precision[recall >= level].max(initial=0.0) for level in _LEVELS])
    decreasing = np.maximum.accumulate(precision[::-1])[::-1]
    return float(eleven_point), float(np.sum(np.diff(recall, prepend=0.0) * decreasing))
