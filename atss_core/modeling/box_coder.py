"""Box coders: boxes to regression targets and back, in float32, broadcasting over leading dimensions.

Encoded boxes are deltas from an anchor box (``BoxCoder``) or distances from an anchor point (``PointCoder``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from atss_core.structures import boxes as box_ops

# A regressed side is at most 62.5 times the anchor's: 1000 px from a 16 px anchor, as in Fast R-CNN's code.
MAX_LOG_RATIO = math.log(1000 / 16)


class Coder(Protocol):
    """Interface of a box coder."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Encode ``boxes`` (..., 4) relative to ``anchors`` (..., 4)."""

    def decode(self, encoded: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (..., 4) of ``encoded`` (..., 4)."""


@dataclass
class BoxCoder:
    """Deltas: offsets of the centre and log ratios of the sides (arXiv 1311.2524, appendix C).

    Args:
        center_weight: factor of the two centre deltas.
        size_weight: factor of the two size deltas.
    """

    center_weight: float = 10.0
    size_weight: float = 5.0

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return the deltas (..., 4) from ``anchors`` to ``boxes``."""
        anchor_sides = torch.stack(box_ops.widths_heights(anchors), dim=-1)
        box_sides = torch.stack(box_ops.widths_heights(boxes), dim=-1)
        shifts = (box_ops.centers(boxes) - box_ops.centers(anchors)) / anchor_sides
        log_ratios = torch.log(box_sides / anchor_sides)
        return torch.cat([shifts * self.center_weight, log_ratios * self.size_weight], dim=-1)

    def decode(self, encoded: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (..., 4) that the deltas ``encoded`` lead to."""
        shifts = encoded[..., :2].float() / self.center_weight
        log_ratios = encoded[..., 2:].float() / self.size_weight
        anchor_sides = torch.stack(box_ops.widths_heights(anchors), dim=-1)
        centers = shifts * anchor_sides + box_ops.centers(anchors)
        sides = torch.exp(log_ratios.clamp(max=MAX_LOG_RATIO)) * anchor_sides
        return box_ops.around(centers, sides[..., 0], sides[..., 1])


@dataclass
class PointCoder:
    """Distances from the anchor's centre to the four sides, in strides (FCOS, arXiv 1904.01355).

    Args:
        anchor_scale: anchor side / stride.
    """

    anchor_scale: float = 8.0

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return the (left, top, right, bottom) distances (..., 4) to the sides of ``boxes``."""
        return box_ops.distances_to_sides(box_ops.centers(anchors), boxes) / self._strides(anchors)

    def decode(self, encoded: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (..., 4) at the distances ``encoded``."""
        distances = encoded.float() * self._strides(anchors)
        centers = box_ops.centers(anchors)
        return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=-1)

    def _strides(self, anchors: Tensor) -> Tensor:
        return box_ops.widths_heights(anchors)[0][..., None] / self.anchor_scale
