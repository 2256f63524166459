"""Constants and functions shared by the assigners."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from atss_core.modeling.anchors import Anchors
from atss_core.structures import boxes as box_ops

BACKGROUND = -1
IGNORED = -2

# An anchor is inside a box only if its centre is more than this many pixels from every side.
INSIDE_MARGIN = 0.01

# Anchors and the ground-truth boxes of each image, (G, 4) each -> the index of the box that each anchor is
# positive for, else BACKGROUND or IGNORED; int64, shape (N, K).
Assigner = Callable[[Anchors, Sequence[Tensor]], Tensor]


def per_image(match: Callable[[Tensor], Tensor], anchors: Anchors, gt_boxes: Sequence[Tensor]) -> Tensor:
    """Match image by image, for assigners that need all pairs of boxes and anchors; returns (N, K)."""
    background = anchors.boxes.new_full((len(anchors),), BACKGROUND, dtype=torch.int64)
    return torch.stack([match(boxes) if len(boxes) else background for boxes in gt_boxes])


def may_be_positive(anchor_boxes: Tensor, gt_boxes: Tensor, ious: Tensor, in_box: bool) -> Tensor:
    """Return a mask (...) of the pairs of anchors (..., 4) and boxes (..., 4) that may be positive.

    The anchor's centre must be inside the box if ``in_box``. If not, the two must overlap, because a box far
    from all anchors has candidates too.
    """
    if not in_box:
        return ious > 0
    return box_ops.distances_to_sides(box_ops.centers(anchor_boxes), gt_boxes).amin(dim=-1) > INSIDE_MARGIN


def resolve_conflicts(candidates: Tensor, ious: Tensor, is_positive: Tensor, num_anchors: int) -> Tensor:
    """Assign each anchor to the box with the highest IoU among those it is positive for.

    Args:
        candidates: anchor indices, int64, shape (N, G, M).
        ious: of each candidate with its box, shape (N, G, M).
        is_positive: whether the candidate is positive for its box, shape (N, G, M).
        num_anchors: K.

    Returns:
        Box index of each anchor, else ``BACKGROUND``; int64, shape (N, K).
    """
    num_images, num_boxes, num_candidates = candidates.shape
    ious = torch.where(is_positive, ious, -1.0).flatten(1)
    anchor_index = candidates.flatten(1)
    best = ious.new_full((num_images, num_anchors), -1.0)
    best = best.scatter_reduce(1, anchor_index, ious, "amax")
    is_best = is_positive.flatten(1) & (ious == best.gather(1, anchor_index))
    box_index = torch.arange(num_boxes, device=ious.device).repeat_interleave(num_candidates)
    claims = torch.where(is_best, box_index, num_boxes)
    matched_idx = claims.new_full((num_images, num_anchors), num_boxes)
    matched_idx = matched_idx.scatter_reduce(1, anchor_index, claims, "amin")
    return torch.where(matched_idx < num_boxes, matched_idx, BACKGROUND)


def sort_key(values: Tensor, indices: Tensor) -> Tensor:
    """Pack float32 values and indices into int64 that sort by value, then index.

    The bits of a positive float, read as a signed integer, are ordered like the float; for negative ones all
    bits but the sign are inverted. The index, below 2^32, is the low half of the key.
    """
    bits = (values.float() + 0.0).contiguous().view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) + indices
