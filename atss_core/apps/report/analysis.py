"""Analyse detections one by one: outcomes, score threshold, confusion matrix, error kinds, image ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atss_core.evaluation.matching import (
    IOU_THRESHOLD,
    NO_MATCH,
    Boxes,
    coco_evaluation,
    match_one_to_one,
)

BACKGROUND_IOU = 0.1  # TIDE: detections below this IoU with all ground truth are on background

# Outcomes of detections and of ground truth. UNMATCHED is a false positive or a missed object.
CORRECT, WRONG_CLASS, UNMATCHED, IGNORED = range(4)


@dataclass(frozen=True)
class Threshold:
    """The score threshold with the best F1, and precision, recall and F1 of the detections that reach it."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Analysis:
    """Detections of a dataset matched to its ground truth.

    Attributes:
        image_ids: in ascending order.
        class_names: in the order of the classes.
        gt: ground truth.
        detections: by image and falling score.
        threshold: the score with the best F1.
        matched_idx: ground truth of CORRECT and WRONG_CLASS detections, else ``NO_MATCH``, int64 (D,).
        outcome: of the detections, int64 (D,). IGNORED: on a crowd or not among the 100 best of its class and
            image. WRONG_CLASS: only those that reach the threshold.
        gt_outcome: of the ground truth, by the detections that reach the threshold, int64 (G,).
    """

    image_ids: Sequence[int]
    class_names: Sequence[str]
    gt: Boxes
    detections: Boxes
    threshold: Threshold
    matched_idx: np.ndarray
    outcome: np.ndarray
    gt_outcome: np.ndarray

    @property
    def is_shown(self) -> np.ndarray:
        """Select the detections that reach the threshold and are not ignored, bool (D,)."""
        return (self.detections.scores >= self.threshold.score) & (self.outcome != IGNORED)

    @property
    def num_gt(self) -> np.ndarray:
        """Count the ground truth of each class without crowds, int64 (C,)."""
        return np.bincount(self.gt.classes[~self.gt.is_crowd], minlength=len(self.class_names))

    def confusion(self) -> np.ndarray:
        """Return the confusion matrix of the detections that reach the threshold, int64 (C + 1, C + 1).

        Rows are classes of ground truth, the last the background; columns those of detections, the last
        "missed". Ground truth is matched within its class first, so the diagonal is the recall.
        """
        background = len(self.class_names)
        matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
        rows = np.append(self.gt.classes, background)[self.matched_idx]  # NO_MATCH is the appended entry
        np.add.at(matrix, (rows[self.is_shown], self.detections.classes[self.is_shown]), 1)
        missed = self.gt.classes[self.gt_outcome == UNMATCHED]
        matrix[:background, background] = np.bincount(missed, minlength=background)
        return matrix

    def tide_errors(self) -> dict[str, Any]:
        """Classify all errors by TIDE (Bolya et al., ECCV 2020, section 2), by hotcoco.

        Crowds and detections on them are left out: hotcoco calls those that partly cover one badly localised.

        Returns:
            "ap_base", the AP50; "delta_ap", its gain by kind of errors if they are corrected; "counts".
        """
        evaluation = coco_evaluation(self.gt[~self.gt.is_crowd], self.detections[self.outcome != IGNORED])
        return evaluation.tide_errors(pos_thr=IOU_THRESHOLD, bg_thr=BACKGROUND_IOU)

    def rank_images(self) -> tuple[np.ndarray, list[int], list[int]]:
        """Return the F1 per image, images with errors, and images with correct detections.

        Errors are false detections and missed objects above the threshold; an object that is found as another
        class is both. Images with errors go by rising F1, then falling number of errors; those with correct
        detections by falling F1, then falling number of these. F1 is NaN without objects and detections.
        """

        def count(boxes: Boxes, chosen: np.ndarray) -> np.ndarray:
            return np.bincount(boxes.images[chosen], minlength=len(self.image_ids))

        wrong = (WRONG_CLASS, UNMATCHED)
        correct = count(self.detections, self.is_shown & (self.outcome == CORRECT))
        errors = count(self.detections, self.is_shown & np.isin(self.outcome, wrong))
        errors += count(self.gt, np.isin(self.gt_outcome, wrong))
        total = 2 * correct + errors
        f1 = np.divide(2 * correct, total, out=np.full(len(total), np.nan), where=total > 0)
        worst, best = np.lexsort((-errors, f1)), np.lexsort((-correct, -f1))
        return f1, worst[errors[worst] > 0].tolist(), best[correct[best] > 0].tolist()


def analyze(
    ground_truth: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    class_names: Sequence[str],
) -> Analysis:
    """Match detections to ground truth.

    Args:
        ground_truth: COCO annotations with image_id, category_id, bbox and iscrowd.
        results: COCO results with finite scores.
        image_ids: the evaluated images.
        category_ids: of the classes.
        class_names: in the same order.
    """
    ids = sorted(image_ids)
    gt, detections = (Boxes.read(entries, ids, category_ids) for entries in (ground_truth, results))
    detections = detections[np.lexsort((-detections.scores, detections.images))]
    matched_idx, is_ignored = match_one_to_one(gt, detections)
    outcome = np.where(is_ignored, IGNORED, np.where(matched_idx == NO_MATCH, UNMATCHED, CORRECT))
    threshold = best_threshold(
        detections.scores[~is_ignored], outcome[~is_ignored] == CORRECT, int(np.count_nonzero(~gt.is_crowd))
    )
    is_shown = detections.scores >= threshold.score
    gt_outcome = np.where(gt.is_crowd, IGNORED, UNMATCHED)
    gt_outcome[matched_idx[is_shown & (outcome == CORRECT)]] = CORRECT
    # Among what is left, classes do not matter.
    rows, gt_rows = np.flatnonzero(is_shown & (outcome == UNMATCHED)), np.flatnonzero(gt_outcome == UNMATCHED)
    left, gt_left = (replace(b, classes=np.zeros_like(b.classes)) for b in (detections[rows], gt[gt_rows]))
    other_idx, _ = match_one_to_one(gt_left, left, max_detections=len(rows) + 1)
    rows, gt_rows = rows[other_idx != NO_MATCH], gt_rows[other_idx[other_idx != NO_MATCH]]
    matched_idx[rows], outcome[rows], gt_outcome[gt_rows] = gt_rows, WRONG_CLASS, WRONG_CLASS
    return Analysis(ids, class_names, gt, detections, threshold, matched_idx, outcome, gt_outcome)


def best_threshold(scores: np.ndarray, is_correct: np.ndarray, num_gt: int) -> Threshold:
    """Choose the score with the best F1 over all detections, the highest of equally good ones.

    Without ground truth or detections the result is a score of 0.5 and zeros.

    Args:
        scores: float64 (D,), in any order.
        is_correct: bool (D,).
        num_gt: number of objects.
    """
    if not len(scores) or not num_gt:
        return Threshold(0.5, 0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    scores, num_correct = scores[order], np.cumsum(is_correct[order])
    num_shown = np.arange(1, len(scores) + 1)
    f1 = 2 * num_correct / (num_shown + num_gt)
    is_last = np.r_[scores[1:] != scores[:-1], True]  # of equal scores
    best = int(np.argmax(np.where(is_last, f1, -1.0)))
    precision, recall = num_correct[best] / num_shown[best], num_correct[best] / num_gt
    return Threshold(float(scores[best]), float(precision), float(recall), float(f1[best]))


def score_curves(
    scores: np.ndarray, is_correct: np.ndarray, num_gt: int, points: int = 201
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return score thresholds with precision, recall and F1 of the detections that reach them.

    The thresholds go from 0 to the highest score; all arrays have shape (points,).
    """
    levels = np.linspace(0, float(scores.max(initial=0)), points)
    num_shown = len(scores) - np.searchsorted(np.sort(scores), levels, side="left")
    num_correct = is_correct.sum() - np.searchsorted(np.sort(scores[is_correct]), levels, side="left")
    f1 = 2 * num_correct / np.maximum(num_shown + num_gt, 1)
    return levels, num_correct / np.maximum(num_shown, 1), num_correct / max(num_gt, 1), f1
