"""Matches against a slow loop."""

import numpy as np
import pytest

from atss_core.evaluation.matching import NO_MATCH, Boxes, match_one_to_one, match_to_largest_iou
from tests.evaluation.made_up import KINDS, make_up


def slow_match(gt, detections, limit):
    """The loop of COCO's definition; returns the ground truth of each detection and whether it is ignored."""
    matched, ignored = np.full(len(detections), NO_MATCH), np.zeros(len(detections), dtype=bool)
    free, counts = np.ones(len(gt), dtype=bool), {}
    for i in np.argsort(-detections.scores, kind="stable").tolist():
        group = detections.images[i], detections.classes[i]
        counts[group] = counts.get(group, 0) + 1
        ignored[i] = counts[group] > limit
        best, best_iou = NO_MATCH, 0.0
        x, y, width, height = detections.xywh[i]
        for j in np.flatnonzero((gt.images == group[0]) & (gt.classes == group[1])).tolist():
            gt_x, gt_y, gt_width, gt_height = gt.xywh[j]
            common = max(min(x + width, gt_x + gt_width) - max(x, gt_x), 0)
            common *= max(min(y + height, gt_y + gt_height) - max(y, gt_y), 0)
            union = width * height + (0 if gt.is_crowd[j] else gt_width * gt_height - common)
            iou = common / union if union else 0
            if ignored[i] or iou < 0.5 or not (free[j] or gt.is_crowd[j]):
                continue
            if best == NO_MATCH or (not gt.is_crowd[j], iou) >= (not gt.is_crowd[best], best_iou):
                best, best_iou = j, iou
        if best != NO_MATCH and gt.is_crowd[best]:
            ignored[i] = True
        elif best != NO_MATCH:
            matched[i], free[best] = best, False
    return matched, ignored


@pytest.mark.parametrize("kind", KINDS)
def test_one_to_one_matches_equal_those_of_the_slow_loop(kind):
    for seed, limit in ((0, 100), (1, 3)):
        images, classes, annotations, detections = make_up(kind, seed)
        gt, boxes = (Boxes.read(entries, images, classes) for entries in (annotations, detections))
        matched, ignored = match_one_to_one(gt, boxes, limit)
        expected, expected_ignored = slow_match(gt, boxes, limit)
        assert matched.tolist() == expected.tolist(), f"seed {seed}"
        assert ignored.tolist() == expected_ignored.tolist()


def test_boxes_without_area_match_nothing_in_voc():
    line = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 0, 20]}
    boxes = Boxes.read([line, {**line, "bbox": [10, 10, 20, 20]}], [1], [1])
    assert match_to_largest_iou(boxes, boxes).tolist() == [NO_MATCH, 1]


def test_entries_of_other_images_and_categories_are_left_out():
    entry = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5, "ignore": 1}
    boxes = Boxes.read([{**entry, "image_id": 8}, entry, {**entry, "category_id": 4}], [9, 7], [5, 3])
    assert len(boxes) == 1
    assert (boxes.images[0], boxes.classes[0], boxes.scores[0], boxes.is_crowd[0]) == (1, 1, 0.5, True)
    assert boxes.xywh.tolist() == [[1, 2, 3, 4]]
