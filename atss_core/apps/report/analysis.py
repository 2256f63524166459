"""Look at detections one by one: right or wrong, by which score to choose, what is taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atss_core.evaluation.matching import NOBODY, Found, Pairs, Truths, find_pairs, match, rank_in

IOU = 0.5  # from which on a detection has found an object
BACKGROUND_IOU = 0.1  # below which a detection has nothing to do with an object (TIDE)

# What becomes of a detection or an object. SWAPPED: the place is right, the class is not.
RIGHT, SWAPPED, WRONG, IGNORED = range(4)


@dataclass(frozen=True)
class Threshold:
    """The score from which on detections have the best F1, and what they have there.

    Attributes:
        score: detections with this score or more count.
        precision: the share of them that are right.
        recall: the share of the objects that they find.
        f1: the harmonic mean of both.
    """

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Analysis:
    """The detections of a data set, matched to its objects.

    Attributes:
        image_ids: of the images.
        class_names: of the classes.
        ground_truth: the objects.
        found: the detections.
        pairs: those that overlap by ``BACKGROUND_IOU`` or more.
        owner: the object of the same class that each detection has found or ``NOBODY``, int64 (D,).
        threshold: the score with the best F1.
        outcome: of each detection, int64 (D,): RIGHT, WRONG or IGNORED (on a crowd), and, among those that
            reach the threshold, SWAPPED.
        swapped: the object that a SWAPPED detection is on, else ``NOBODY``, int64 (D,).
        gt_outcome: of each object by the detections that reach the threshold, int64 (G,): RIGHT if it is
            found, SWAPPED under another class, WRONG if it is missed, IGNORED for crowds.
    """

    image_ids: Sequence[int]
    class_names: Sequence[str]
    ground_truth: Truths
    found: Found
    pairs: Pairs
    owner: np.ndarray
    threshold: Threshold
    outcome: np.ndarray
    swapped: np.ndarray
    gt_outcome: np.ndarray

    @property
    def is_shown(self) -> np.ndarray:
        """Tell which detections reach the threshold, bool (D,)."""
        return self.found.scores >= self.threshold.score

    @property
    def num_objects(self) -> np.ndarray:
        """Count the objects of each class without crowds, int64 (C,)."""
        return np.bincount(
            self.ground_truth.classes[~self.ground_truth.is_crowd], minlength=len(self.class_names)
        )

    def confusion(self) -> np.ndarray:
        """Count what is taken for what by the detections that reach the threshold, int64 (C + 1, C + 1).

        Rows are the classes of objects, the last the background; columns those of detections, the last
        "missed".
        """
        none = len(self.class_names)
        shown = self.is_shown & (self.outcome != IGNORED)
        place = np.where(self.outcome == SWAPPED, self.swapped, self.owner)[shown]
        rows = np.where(place == NOBODY, none, np.append(self.ground_truth.classes, none)[place])
        matrix = np.zeros((none + 1, none + 1), dtype=np.int64)
        np.add.at(matrix, (rows, self.found.classes[shown]), 1)
        missed = self.ground_truth.classes[self.gt_outcome == WRONG]
        matrix[:none, none] = np.bincount(missed, minlength=none)
        return matrix


def analyze(
    ground_truth: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    class_names: Sequence[str],
) -> Analysis:
    """Match detections to objects.

    Args:
        ground_truth: COCO annotations with image_id, category_id, bbox and iscrowd.
        results: COCO results.
        image_ids: the images that were tested.
        category_ids: of the classes.
        class_names: in the same order.
    """
    ids = sorted(image_ids)  # as pycocotools orders them, which decides between equal scores
    objects, found = Truths.read(ground_truth, ids, category_ids), Found.read(results, ids, category_ids)
    pairs = find_pairs(found, objects, BACKGROUND_IOU)
    same_class = found.classes[pairs.found] == objects.classes[pairs.ground_truth]
    owner = match(pairs[same_class], found.ranks, objects, IOU)
    outcome = np.where(owner == NOBODY, WRONG, RIGHT)
    outcome[np.append(objects.is_crowd, False)[owner]] = IGNORED
    counts = outcome != IGNORED
    threshold = best_threshold(
        found.scores[counts], outcome[counts] == RIGHT, int(np.count_nonzero(~objects.is_crowd))
    )
    swapped, gt_outcome = _match_other_classes(objects, found, pairs, owner, outcome, threshold)
    outcome[swapped != NOBODY] = SWAPPED
    return Analysis(ids, class_names, objects, found, pairs, owner, threshold, outcome, swapped, gt_outcome)


def best_threshold(scores: np.ndarray, is_right: np.ndarray, num_objects: int) -> Threshold:
    """Choose the score with the best F1 over all detections, the highest of several.

    Where there is no object or no detection, all is 0 from a score of 0.5 on.

    Args:
        scores: float64 (D,), in any order.
        is_right: bool (D,).
        num_objects: that are to be found.
    """
    if not len(scores) or not num_objects:
        return Threshold(0.5, 0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    scores, num_right = scores[order], np.cumsum(is_right[order])
    num_shown = np.arange(1, len(scores) + 1)
    f1 = 2 * num_right / (num_shown + num_objects)
    is_last = np.r_[scores[1:] != scores[:-1], True]  # equal scores come together
    best = int(np.argmax(np.where(is_last, f1, -1.0)))
    precision, recall = num_right[best] / num_shown[best], num_right[best] / num_objects
    return Threshold(float(scores[best]), float(precision), float(recall), float(f1[best]))


def score_curves(
    scores: np.ndarray, is_right: np.ndarray, num_objects: int, points: int = 201
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, and precision, recall and F1 of the detections with each of them or more.

    The scores go from 0 to the highest; all arrays have shape (points,).

    Args:
        scores: float64 (D,), in any order.
        is_right: bool (D,).
        num_objects: that are to be found.
        points: how many scores.
    """
    levels = np.linspace(0, float(scores.max(initial=0)), points)
    num_shown = len(scores) - np.searchsorted(np.sort(scores), levels, side="left")
    num_right = is_right.sum() - np.searchsorted(np.sort(scores[is_right]), levels, side="left")
    precision = num_right / np.maximum(num_shown, 1)
    recall = num_right / max(num_objects, 1)
    return levels, precision, recall, 2 * num_right / np.maximum(num_shown + num_objects, 1)


def _match_other_classes(
    ground_truth: Truths,
    found: Found,
    pairs: Pairs,
    owner: np.ndarray,
    outcome: np.ndarray,
    threshold: Threshold,
) -> tuple[np.ndarray, np.ndarray]:
    """Match what the classes have left over to each other, among detections that reach the threshold.

    Returns:
        Of each detection the object of another class or ``NOBODY``, and the outcome of each object.
    """
    is_shown = found.scores >= threshold.score
    is_left = ~ground_truth.is_crowd
    is_left[owner[is_shown & (outcome == RIGHT)]] = False
    gt_outcome = np.where(ground_truth.is_crowd, IGNORED, np.where(is_left, WRONG, RIGHT))
    may_match = (is_shown & (outcome == WRONG))[pairs.found] & is_left[pairs.ground_truth]
    swapped = match(pairs[may_match], rank_in(found.images), ground_truth, IOU)
    gt_outcome[swapped[swapped != NOBODY]] = SWAPPED
    return swapped, gt_outcome
