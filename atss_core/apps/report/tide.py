"""Which kinds of error cost how much AP.

D. Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from atss_core.apps.report.analysis import BACKGROUND_IOU, IGNORED, IOU, RIGHT, Analysis
from atss_core.evaluation.matching import NOBODY

CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED = KINDS = (
    "classification",
    "localisation",
    "both",
    "duplicate",
    "background",
    "missed",
)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ErrorBreakdown:
    """Errors by kind.

    Attributes:
        ap: at IoU 0.5, in 0..1, before anything is mended.
        gain: kind of error -> how much higher AP is when all errors of this kind alone are mended.
        counts: kind of error -> wrong detections, or missed objects.
        gain_false: AP's gain without any wrong detection.
        gain_missed: AP's gain if the objects that no detection has found were not there.
    """

    ap: float
    gain: dict[str, float]
    counts: dict[str, int]
    gain_false: float
    gain_missed: float


@dataclass(frozen=True)
class _Detections:
    """What AP depends on.

    Attributes:
        scores: float64 (D,).
        classes: int64 (D,).
        is_right: bool (D,).
        counts: bool (D,); the others are left out.
        num_objects: of each class, int64 (C,).
        has_objects: the classes that count, bool (C,); one that has lost all its objects counts as 0.
    """

    scores: np.ndarray
    classes: np.ndarray
    is_right: np.ndarray
    counts: np.ndarray
    num_objects: np.ndarray
    has_objects: np.ndarray

    def ap(self) -> float:
        """Return the mean AP of the classes that count."""
        rows = np.flatnonzero(self.counts)
        rows = rows[np.lexsort((-self.scores[rows], self.classes[rows]))]
        bounds = np.searchsorted(self.classes[rows], np.arange(len(self.num_objects) + 1))
        aps = [
            average_precision(self.is_right[rows[bounds[k] : bounds[k + 1]]], int(self.num_objects[k]))
            for k in np.flatnonzero(self.has_objects).tolist()
        ]
        return float(np.mean(aps)) if aps else 0.0

    def without(self, errors: np.ndarray) -> _Detections:
        """Leave out some detections, bool (D,)."""
        return replace(self, counts=self.counts & ~errors)


@dataclass(frozen=True)
class _Errors:
    """The errors of a data set.

    Attributes:
        wrong: kind -> detections that are wrong in this way, bool (D,).
        targets: the object that a detection would find if mended, or ``NOBODY``, int64 (D,).
        is_found: objects that a detection has found, and crowds, bool (G,).
        is_missed: objects that none would find even if mended, bool (G,).
    """

    wrong: dict[str, np.ndarray]
    targets: np.ndarray
    is_found: np.ndarray
    is_missed: np.ndarray


def break_down(analysis: Analysis) -> ErrorBreakdown:
    """Sort all errors at IoU 0.5 into the six kinds of TIDE and measure what mending each kind gains."""
    errors = _sort(analysis)
    gt_classes, num_objects = analysis.ground_truth.classes, analysis.num_objects
    now = _Detections(
        analysis.found.scores,
        analysis.found.classes,
        is_right=analysis.outcome == RIGHT,
        counts=analysis.outcome != IGNORED,
        num_objects=num_objects,
        has_objects=num_objects > 0,
    )
    # An object takes one mended detection, the best scored of both kinds; the others, and those on objects
    # that are found anyway, go. The authors' program shares it between the kinds as well.
    is_mendable = ~np.append(errors.is_found, True)[errors.targets]
    is_mended = _first_on_each(is_mendable, errors.targets, now.scores)

    def mended(kind: str) -> _Detections:
        moved = errors.wrong[kind] & is_mended
        classes = np.where(moved, np.append(gt_classes, NOBODY)[errors.targets], now.classes)
        return replace(
            now.without(errors.wrong[kind] & ~moved), classes=classes, is_right=now.is_right | moved
        )

    def if_not_there(objects: np.ndarray) -> _Detections:
        absent = np.bincount(gt_classes[objects], minlength=len(num_objects))
        return replace(now, num_objects=num_objects - absent)

    better = {
        CLASSIFICATION: mended(CLASSIFICATION),
        LOCALIZATION: mended(LOCALIZATION),
        **{kind: now.without(errors.wrong[kind]) for kind in (BOTH, DUPLICATE, BACKGROUND)},
        MISSED: if_not_there(errors.is_missed),
    }
    ap = now.ap()
    counted = {**errors.wrong, MISSED: errors.is_missed}
    return ErrorBreakdown(
        ap,
        gain={kind: detections.ap() - ap for kind, detections in better.items()},
        counts={kind: int(np.count_nonzero(counted[kind])) for kind in KINDS},
        gain_false=now.without(np.any(list(errors.wrong.values()), axis=0)).ap() - ap,
        gain_missed=if_not_there(~errors.is_found).ap() - ap,
    )


def _sort(analysis: Analysis) -> _Errors:
    """Sort errors; the kinds exclude each other.

    A wrong detection is a localisation error if its best IoU with an object of its class is between 0.1 and
    0.5; else a classification error if its IoU with one of another class is 0.5 or more; else a duplicate if
    that with one of its class is; else background if it overlaps nothing by 0.1; else both. Missed are the
    objects that no detection has found, nor would find if errors of the first two kinds were mended.
    """
    owner = analysis.owner
    (same_iou, same), (other_iou, other) = _best(analysis, True), _best(analysis, False)
    conditions = {
        LOCALIZATION: (same_iou >= BACKGROUND_IOU) & (same_iou <= IOU),
        CLASSIFICATION: other_iou >= IOU,
        DUPLICATE: same_iou >= IOU,
        BACKGROUND: np.maximum(same_iou, other_iou) <= BACKGROUND_IOU,
        BOTH: np.ones(len(owner), dtype=bool),
    }
    wrong: dict[str, np.ndarray] = {}
    rest = owner == NOBODY
    for kind, holds in conditions.items():
        wrong[kind] = rest & holds
        rest = rest & ~holds
    targets = np.where(wrong[LOCALIZATION], same, np.where(wrong[CLASSIFICATION], other, NOBODY))
    is_found = analysis.ground_truth.is_crowd.copy()
    is_found[owner[owner != NOBODY]] = True
    is_missed = ~is_found
    is_missed[targets[targets != NOBODY]] = False
    return _Errors(wrong, targets, is_found, is_missed)


def _best(analysis: Analysis, of_same_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """Find the object that each detection overlaps most, among those of its own or of other classes.

    Returns:
        IoUs, 0 without any such object, and the objects or ``NOBODY``, both of shape (D,).
    """
    pairs, ground_truth = analysis.pairs, analysis.ground_truth
    is_same = analysis.found.classes[pairs.found] == ground_truth.classes[pairs.ground_truth]
    pairs = pairs[(is_same == of_same_class) & ~ground_truth.is_crowd[pairs.ground_truth]]
    ious, best = np.zeros(len(analysis.found)), np.full(len(analysis.found), NOBODY)
    ious[pairs.found], best[pairs.found] = (
        pairs.ious,
        pairs.ground_truth,
    )  # the last pair, which is the best, stays
    return ious, best


def _first_on_each(errors: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Keep, of the detections on one object, the best scored; bool (D,)."""
    rows = np.flatnonzero(errors)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    kept = np.zeros(len(errors), dtype=bool)
    kept[rows[np.unique(targets[rows], return_index=True)[1]]] = True
    return kept


def average_precision(is_right: np.ndarray, num_objects: int) -> float:
    """Return the mean of the interpolated precision at the recalls 0, 0.01, ..., 1, as COCO does.

    Args:
        is_right: of detections by falling score, bool (D,).
        num_objects: that are to be found; without any the result is 0.
    """
    if not num_objects:
        return 0.0
    num_right = np.cumsum(is_right)
    precision = num_right / np.arange(1, len(is_right) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(num_right / num_objects, RECALLS, side="left")
    return float(np.append(falling, 0.0)[np.minimum(places, len(falling))].mean())
