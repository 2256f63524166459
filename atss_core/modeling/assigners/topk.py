"""A fixed number of positives per box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners.common import may_be_positive, per_image, resolve_conflicts, sort_key
from atss_core.structures import boxes as box_ops


@dataclass
class TopkAssigner:
    """A fixed number of positives per box: the highest IoUs, ties settled by distance.

    The rank score is ``IoU - distance / largest distance / 1000``. An anchor that several boxes claim goes to
    the one it overlaps most.

    Args:
        topk: anchors per box over all levels.
        positives_in_box: drop those whose centre is outside the box.
    """

    topk: int = 9
    _: KW_ONLY
    positives_in_box: bool = True

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ValueError(f"topk: expected at least 1, got {self.topk}")

    def __call__(self, anchors: Anchors, gt_boxes: Sequence[Tensor]) -> Tensor:
        """Match anchors to the boxes (G, 4) of each image; returns (N, K) int64."""

        def match(boxes: Tensor) -> Tensor:
            ious = box_ops.iou(anchors.boxes, boxes[:, None])  # (G, K)
            offsets = box_ops.centers(anchors.boxes) - box_ops.centers(boxes)[:, None]
            distances = offsets.square().sum(dim=-1).sqrt()
            order = sort_key(
                distances / distances.max() / 1000 - ious, torch.arange(len(anchors), device=boxes.device)
            )
            candidates = order.topk(min(self.topk, len(anchors)), largest=False).indices
            ious = ious.gather(1, candidates)
            is_positive = may_be_positive(
                anchors.boxes[candidates], boxes[:, None], ious, self.positives_in_box
            )
            return resolve_conflicts(candidates[None], ious[None], is_positive[None], len(anchors))[0]

        return per_image(match, anchors, gt_boxes)
