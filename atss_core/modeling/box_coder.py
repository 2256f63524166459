"""What the head regresses, and back to boxes.

Both coders work in float32 and broadcast over leading dimensions.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from atss_core.structures import boxes as box_ops

# A regressed side is at most 62.5 times the anchor's: 1000 px from a 16 px anchor, as in Fast R-CNN's code.
MAX_LOG_RATIO = math.log(1000 / 16)


class Coder(Protocol):
    """What loss and post-processing need of a coder."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return the codes (..., 4) that decode to ``boxes`` (..., 4)."""

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (..., 4) that ``codes`` (..., 4) mean."""


class BoxCoder:
    """REGRESSION_TYPE BOX: offsets of the centre and log ratios of the sides (arXiv 1311.2524, appendix C).

    Args:
        center_weight: factor of the two centre codes.
        size_weight: factor of the two size codes.
    """

    def __init__(self, center_weight: float = 10.0, size_weight: float = 5.0) -> None:
        self.center_weight = center_weight
        self.size_weight = size_weight

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return the codes (..., 4) that decode to ``boxes`` (..., 4)."""
        anchor_sides = torch.stack(box_ops.widths_heights(anchors), dim=-1)
        box_sides = torch.stack(box_ops.widths_heights(boxes), dim=-1)
        shifts = (box_ops.centers(boxes) - box_ops.centers(anchors)) / anchor_sides
        ratios = torch.log(box_sides / anchor_sides)
        return torch.cat([shifts * self.center_weight, ratios * self.size_weight], dim=-1)

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (..., 4) that ``codes`` (..., 4) mean."""
        shifts = codes[..., :2].float() / self.center_weight
        log_ratios = codes[..., 2:].float() / self.size_weight
        anchor_sides = torch.stack(box_ops.widths_heights(anchors), dim=-1)
        centers = shifts * anchor_sides + box_ops.centers(anchors)
        sides = torch.exp(log_ratios.clamp(max=MAX_LOG_RATIO)) * anchor_sides
        return box_ops.around(centers, sides[..., 0], sides[..., 1])


class PointCoder:
    """REGRESSION_TYPE POINT: distances from the anchor's centre to the four sides, in strides (FCOS).

    Args:
        anchor_scale: anchor side divided by stride.
    """

    def __init__(self, anchor_scale: float = 8.0) -> None:
        self.anchor_scale = anchor_scale

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return the codes (..., 4) that decode to ``boxes`` (..., 4)."""
        return box_ops.distances_to_sides(box_ops.centers(anchors), boxes) / self._strides(anchors)

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (..., 4) that ``codes`` (..., 4) mean."""
        distances = codes.float() * self._strides(anchors)
        centers = box_ops.centers(anchors)
        return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=-1)

    def _strides(self, anchors: Tensor) -> Tensor:
        return box_ops.widths_heights(anchors)[0][..., None] / self.anchor_scale
