"""Spatial and scale constraint of FCOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners.common import BACKGROUND, INSIDE_MARGIN, per_image
from atss_core.structures import boxes as box_ops

# Object sizes that FCOS leaves to P3 ... P7: the largest distance to a side in pixels, both ends included.
SSC_SIZES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, float("inf")))


@dataclass
class SscAssigner:
    """Spatial and scale constraint of FCOS (arXiv 1904.01355, section 3.2).

    An anchor is positive for the boxes that contain its centre and whose size suits its level; the smallest
    of them wins. With centre sampling (version 2 of that paper, and its released code) the anchor's centre
    must also be near the box's, horizontally and vertically.

    Args:
        sizes: (low, high) of each level in pixels, both included.
        center_radius: limit of the distance between the centres in strides of the level; 0 for no limit.
    """

    sizes: Sequence[tuple[float, float]] = SSC_SIZES
    _: KW_ONLY
    center_radius: float = 0.0

    def __post_init__(self) -> None:
        if self.center_radius < 0:
            raise ValueError(
                f"center_radius: expected 0 (off) or a number of strides, got {self.center_radius}"
            )

    def __call__(self, anchors: Anchors, gt_boxes: Sequence[Tensor]) -> Tensor:
        """Match anchors to the boxes (G, 4) of each image; returns (N, K) int64.

        Raises:
            ValueError: if the number of levels is not that of ``sizes``.
        """
        if len(anchors.strides) != len(self.sizes):
            raise ValueError(
                f"sizes: expected one per level, got {len(self.sizes)} for {len(anchors.strides)}"
            )
        radii = [stride * self.center_radius or torch.inf for stride in anchors.strides]
        low, high, radius = (
            torch.cat([anchors.boxes.new_full((n,), x) for n, x in zip(anchors.counts, values, strict=True)])
            for values in (*zip(*self.sizes, strict=True), radii)
        )  # (K,) each
        centers = box_ops.centers(anchors.boxes)

        def match(boxes: Tensor) -> Tensor:
            distances = box_ops.distances_to_sides(centers, boxes[:, None])  # (G, K, 4)
            size = distances.amax(dim=-1)
            is_positive = (distances.amin(dim=-1) > INSIDE_MARGIN) & (size >= low) & (size <= high)
            is_positive &= (centers - box_ops.centers(boxes)[:, None]).abs().amax(dim=-1) < radius
            areas = torch.where(is_positive, box_ops.area(boxes)[:, None], torch.inf)
            smallest, box_index = areas.min(dim=0)
            return torch.where(smallest < torch.inf, box_index, BACKGROUND)

        return per_image(match, anchors, gt_boxes)
