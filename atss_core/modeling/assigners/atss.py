"""Adaptive Training Sample Selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners.closest import closest_anchors
from atss_core.modeling.assigners.common import BACKGROUND, may_be_positive, resolve_conflicts, sort_key
from atss_core.structures import boxes as box_ops


@dataclass(frozen=True)
class Candidates:
    """Per-box ATSS statistics, before conflicts between boxes are resolved.

    Boxes are padded to the image with the most; values in padded rows are undefined.

    Attributes:
        anchors: indices of the candidates, level by level, int64, shape (N, G, M).
        ious: of each candidate with its box, shape (N, G, M).
        mean: of the IoUs, shape (N, G).
        threshold: mean plus standard deviation of the IoUs, shape (N, G).
        is_positive: whether the candidate reaches the threshold and may be positive, bool, shape (N, G, M).
        is_box: False in padded rows, bool, shape (N, G).
    """

    anchors: Tensor
    ious: Tensor
    mean: Tensor
    threshold: Tensor
    is_positive: Tensor
    is_box: Tensor


@dataclass
class AtssAssigner:
    """Adaptive Training Sample Selection (paper, algorithm 1).

    For each box, the ``topk`` anchors of each level that are closest to its centre are candidates. Those
    whose IoU with it reaches the mean plus the standard deviation of the candidates' IoUs, and whose centre
    is inside it, are positive. An anchor that several boxes claim goes to the one it overlaps most.

    The candidates are found on the grid: memory and time grow with the boxes, not with boxes times anchors.

    Args:
        topk: locations per level and box; each counts with all its anchors.
        positives_in_box: only anchors whose centre is inside the box can be positive.
        at_least_one: give each box without a positive one of its candidates, unlike the paper.
    """

    topk: int = 9
    _: KW_ONLY
    positives_in_box: bool = True
    at_least_one: bool = False

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ValueError(f"topk: expected at least 1, got {self.topk}")

    def __call__(self, anchors: Anchors, gt_boxes: Sequence[Tensor]) -> Tensor:
        """Match anchors to the boxes (G, 4) of each image; returns (N, K) int64."""
        if not any(map(len, gt_boxes)):
            return anchors.boxes.new_full((len(gt_boxes), len(anchors)), BACKGROUND, dtype=torch.int64)
        stats = self.candidates(anchors, gt_boxes)
        matched_idx = resolve_conflicts(stats.anchors, stats.ious, stats.is_positive, len(anchors))
        return _with_at_least_one(stats, matched_idx) if self.at_least_one else matched_idx

    def candidates(self, anchors: Anchors, gt_boxes: Sequence[Tensor]) -> Candidates:
        """Find the candidates of the boxes (G, 4) of each image, at least one of which has a box."""
        boxes = torch.nn.utils.rnn.pad_sequence(list(gt_boxes), batch_first=True)  # (N, G, 4)
        counts = torch.tensor([len(image_boxes) for image_boxes in gt_boxes])
        is_box = (torch.arange(boxes.shape[1]) < counts[:, None]).to(boxes.device, non_blocking=True)
        candidates = closest_anchors(anchors, box_ops.centers(boxes), self.topk)
        candidate_boxes = anchors.boxes[candidates]
        ious = box_ops.iou(candidate_boxes, boxes[:, :, None])
        mean = ious.mean(dim=-1)
        # A single candidate has no standard deviation.
        threshold = mean + ious.std(dim=-1) if ious.shape[-1] > 1 else mean
        is_positive = (ious >= threshold[..., None]) & is_box[..., None]
        is_positive &= may_be_positive(candidate_boxes, boxes[:, :, None], ious, self.positives_in_box)
        return Candidates(candidates, ious, mean, threshold, is_positive, is_box)


def _with_at_least_one(stats: Candidates, matched_idx: Tensor) -> Tensor:
    """Give boxes without a positive anchor their best candidate that no other box needs.

    Each box with positives keeps the one it overlaps most; its others may be taken. Then, round by round,
    each box without claims its best candidate (by IoU, then the lowest anchor index) among those that it
    overlaps and no box keeps, whether the centre is inside or not. An anchor that several boxes claim goes to
    the one it overlaps most, then to the lowest box index, which keeps it.

    So no box loses its last positive. A box stays without one only if it overlaps no candidate, or each
    candidate that it overlaps is the only positive of another box. Among equal boxes the lowest indices come
    first.

    Args:
        stats: the candidates.
        matched_idx: box index of each anchor, else ``BACKGROUND``; int64, shape (N, K).

    Returns:
        The box indices with these changes, int64, shape (N, K).
    """
    order = sort_key(-stats.ious, stats.anchors).argsort(dim=-1)
    candidates, ious = stats.anchors.gather(-1, order), stats.ious.gather(-1, order)
    num_boxes, num_candidates = candidates.shape[1:]
    box_index = torch.arange(num_boxes, device=matched_idx.device)[:, None]
    may_claim = stats.is_box[..., None] & (ious > 0)

    def of_candidates(values: Tensor) -> Tensor:
        return values.gather(1, candidates.flatten(1)).view_as(candidates)

    def assign_first(is_allowed: Tensor) -> Tensor:
        """Assign the first allowed candidate of each box, its best, to a box that claims it, shape (N, K)."""
        first = is_allowed.byte().argmax(dim=-1, keepdim=True)
        has_claim = is_allowed.any(dim=-1, keepdim=True)
        return resolve_conflicts(
            candidates.gather(-1, first), ious.gather(-1, first), has_claim, matched_idx.shape[1]
        )

    kept = assign_first(of_candidates(matched_idx) == box_index)
    # Each round gives an anchor to at least one waiting box of an image, and takes a candidate from all
    # others. So this many rounds suffice, and no device is asked whether fewer would.
    for _ in range(min(num_boxes, num_candidates)):
        keeper = of_candidates(kept)
        has_none = ~(keeper == box_index).any(dim=-1, keepdim=True)
        kept = torch.maximum(kept, assign_first(may_claim & has_none & (keeper == BACKGROUND)))
    return torch.where(kept >= 0, kept, matched_idx)
