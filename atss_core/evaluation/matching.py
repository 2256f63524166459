"""Match detections to ground truth: one to one as in COCO, by hotcoco, and to the largest IoU as in VOC."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
import torch

from atss_core.structures import boxes as box_ops

IOU_THRESHOLD = 0.5
MAX_DETECTIONS = 100  # per class and image, those with the highest scores; COCO's limit
NO_MATCH = -1


@dataclass(frozen=True)
class Boxes:
    """Ground truth or detections of a dataset.

    Attributes:
        xywh: (x, y, width, height) in pixels of the images, float64 (B, 4).
        images: index of the image, int64 (B,).
        classes: index of the class, int64 (B,).
        scores: confidence of detections, float64 (B,); 1 for ground truth.
        is_crowd: ground truth whose detections do not count, bool (B,).
    """

    xywh: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    is_crowd: np.ndarray

    @classmethod
    def read(
        cls, entries: Sequence[dict[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]
    ) -> Boxes:
        """Convert COCO annotations or results; entries of other images or categories are left out."""
        image_index = {image_id: index for index, image_id in enumerate(image_ids)}
        class_index = {category_id: index for index, category_id in enumerate(category_ids)}
        kept = [e for e in entries if e["image_id"] in image_index and e["category_id"] in class_index]
        return cls(
            np.array([e["bbox"] for e in kept], dtype=np.float64).reshape(-1, 4),
            np.array([image_index[e["image_id"]] for e in kept], dtype=np.int64),
            np.array([class_index[e["category_id"]] for e in kept], dtype=np.int64),
            np.array([e.get("score", 1.0) for e in kept], dtype=np.float64),
            np.array([bool(e.get("iscrowd") or e.get("ignore")) for e in kept], dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.xywh)

    def __getitem__(self, rows: np.ndarray) -> Boxes:
        return Boxes(
            self.xywh[rows], self.images[rows], self.classes[rows], self.scores[rows], self.is_crowd[rows]
        )


def coco_evaluation(gt: Boxes, detections: Boxes, max_detections: int = MAX_DETECTIONS) -> hotcoco.COCOeval:
    """Match detections to ground truth of their image and class at IoU 0.5; ids are rows plus 1."""
    num_images, num_classes = (
        max(first.max(initial=0), second.max(initial=0)) + 1
        for first, second in ((gt.images, detections.images), (gt.classes, detections.classes))
    )
    coco = hotcoco.COCO.from_arrays(
        images=[{"id": number} for number in range(1, num_images + 1)],
        categories=[{"id": number, "name": str(number)} for number in range(1, num_classes + 1)],
        image_ids=gt.images + 1,
        category_ids=gt.classes + 1,
        boxes=gt.xywh,
        iscrowd=gt.is_crowd,
    )
    rows = (detections.images + 1, detections.xywh, detections.scores, detections.classes + 1)
    evaluation = hotcoco.COCOeval(coco, coco.load_res(np.column_stack(rows)), "bbox")
    evaluation.params.iou_thrs = [IOU_THRESHOLD]
    evaluation.params.area_rng, evaluation.params.area_rng_lbl = [[0, 1e10]], ["all"]
    evaluation.params.max_dets = [max_detections]
    evaluation.evaluate()
    return evaluation


def match_one_to_one(
    gt: Boxes, detections: Boxes, max_detections: int = MAX_DETECTIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Match detections by falling score to the best ground truth of their class that is left, as COCO does.

    Returns:
        The ground truth of each detection or ``NO_MATCH``, int64 (D,), and whether the detection is ignored:
        on a crowd, or beyond ``max_detections`` of its class in the image, bool (D,).
    """
    diagnostics = coco_evaluation(gt, detections, max_detections).image_diagnostics(iou_thr=IOU_THRESHOLD)
    matched_idx = np.full(len(detections), NO_MATCH)
    is_ignored = np.ones(len(detections), dtype=bool)
    counted, matches = diagnostics["dt_status"], diagnostics["dt_match"]
    is_ignored[np.fromiter(counted, np.int64, len(counted)) - 1] = False
    rows = np.fromiter(matches, np.int64, len(matches)) - 1
    matched_idx[rows] = np.fromiter(matches.values(), np.int64, len(matches)) - 1
    matched_idx[is_ignored] = NO_MATCH
    return matched_idx, is_ignored


def match_to_largest_iou(gt: Boxes, detections: Boxes) -> np.ndarray:
    """Match each detection to the ground truth of its class with the largest IoU, if that is at least 0.5.

    Returns:
        The ground truth of each detection or ``NO_MATCH``, int64 (D,).
    """
    matched_idx = np.full(len(detections), NO_MATCH)
    # Exactly the sizes of the file, which ``from_xywh`` enlarges to a pixel.
    corners, gt_corners = (
        box_ops.to_inclusive(torch.from_numpy(np.hstack([b.xywh[:, :2], b.xywh[:, :2] + b.xywh[:, 2:]])))
        for b in (detections, gt)
    )
    num_images = int(gt.images.max(initial=-1)) + 1
    for rows, gt_rows in zip(
        _rows_by_image(detections.images, num_images), _rows_by_image(gt.images, num_images), strict=True
    ):
        if len(rows) and len(gt_rows):
            # Two boxes without area have no IoU, NaN.
            ious = box_ops.iou(corners[rows][:, None], gt_corners[gt_rows]).nan_to_num(0).numpy()
            ious[detections.classes[rows][:, None] != gt.classes[gt_rows]] = -1
            best = ious.argmax(axis=1)
            is_match = ious.max(axis=1) >= IOU_THRESHOLD
            matched_idx[rows[is_match]] = gt_rows[best[is_match]]
    return matched_idx


def _rows_by_image(images: np.ndarray, num_images: int) -> list[np.ndarray]:
    order = np.argsort(images, kind="stable")
    bounds = np.searchsorted(images[order], np.arange(num_images + 1))
    return [order[start:end] for start, end in itertools.pairwise(bounds)]
