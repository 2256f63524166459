"""IoU thresholds of RetinaNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners.common import BACKGROUND, IGNORED, may_be_positive, per_image
from atss_core.structures import boxes as box_ops


@dataclass
class IouAssigner:
    """IoU thresholds of RetinaNet (arXiv 1708.02002, section 4).

    An anchor is positive for the box it overlaps most if their IoU reaches the upper threshold, or if it is
    one of some box's best anchors. It is background below the lower threshold and ignored in between.

    Args:
        positive_iou: the upper threshold.
        negative_iou: the lower threshold.
        positives_in_box: ignore positives whose centre is outside their box, which RetinaNet keeps.
    """

    positive_iou: float = 0.5
    negative_iou: float = 0.4
    _: KW_ONLY
    positives_in_box: bool = True

    def __post_init__(self) -> None:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou: expected at most positive_iou {self.positive_iou}, got {self.negative_iou}"
            )

    def __call__(self, anchors: Anchors, gt_boxes: Sequence[Tensor]) -> Tensor:
        """Match anchors to the boxes (G, 4) of each image; returns (N, K) int64."""

        def match(boxes: Tensor) -> Tensor:
            ious = box_ops.iou(anchors.boxes, boxes[:, None])  # (G, K)
            best_iou, box_index = ious.max(dim=0)
            best_of_box = ious.amax(dim=1, keepdim=True)
            # A box that overlaps no anchor would tie with all of them at IoU 0, hence the second condition.
            is_best_of_a_box = ((ious == best_of_box) & (best_of_box > 0)).any(dim=0)
            is_positive = (best_iou >= self.positive_iou) | is_best_of_a_box
            is_kept = may_be_positive(anchors.boxes, boxes[box_index], best_iou, self.positives_in_box)
            unmatched = torch.where(best_iou < self.negative_iou, BACKGROUND, IGNORED)
            return torch.where(is_positive, torch.where(is_kept, box_index, IGNORED), unmatched)

        return per_image(match, anchors, gt_boxes)
