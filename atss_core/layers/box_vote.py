"""Box voting, the merge of multi-scale testing."""

from __future__ import annotations

import torch
from torch import Tensor

from atss_core.layers.checks import check_boxes
from atss_core.layers.extension import COMPILED_DEVICES, is_compiled
from atss_core.structures import boxes as box_ops

# A member of a cluster must keep this score to stay beside the mean in a soft vote.
MIN_SOFT_SCORE = 0.05


def box_vote(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, soft: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace each cluster of boxes of a class by its mean.

    The best box and all boxes left whose IoU with it reaches the threshold are a cluster, and so on with
    the rest. A cluster of several becomes the mean of its boxes weighted by their scores (arXiv 1505.01749,
    section 5) with the highest of its scores. A soft vote also keeps the members, rescored to s * (1 - IoU
    with the best one), if that is 0.05 or more. Boxes that are not finite stay alone.

    Args:
        boxes: inclusive (x1, y1, x2, y2) pixels of any floating type, shape (K, 4).
        scores: shape (K,), not negative.
        labels: class of each box, any integers, shape (K,).
        threshold: IoU from which on a box belongs to a better one.
        soft: whether to keep rescored members.

    Returns:
        New boxes (V, 4) and scores (V,) in float32 and labels (V,) int64, by falling score; of equal scores
        means come before members, and both in the order of the boxes. They carry no gradient.

    Raises:
        ValueError: if the shapes or types do not fit, or the threshold is negative.
    """
    boxes, scores = boxes.detach(), scores.detach()
    if is_compiled(boxes.device):
        exclusive = box_ops.to_exclusive(boxes.float())
        exclusive, scores, labels = torch.ops.atss.box_vote(
            exclusive, scores, labels, threshold, soft, MIN_SOFT_SCORE
        )
        return box_ops.to_inclusive(exclusive), scores, labels
    check_boxes(boxes, scores, labels, threshold)
    boxes, scores, labels = boxes.float(), scores.float(), labels.long()
    if len(scores) == 0:
        return boxes, scores, labels
    owner, overlap = _find_owners(boxes, scores, labels, threshold)
    is_best = owner == torch.arange(len(owner), device=owner.device)
    sums = scores.new_zeros(len(scores), dtype=torch.float64).index_add_(0, owner, scores.double())
    weighted = torch.zeros_like(boxes, dtype=torch.float64).index_add_(
        0, owner, boxes.double() * scores[:, None]
    )
    has_members = torch.bincount(owner, minlength=len(owner)) > 1
    mean = torch.where((has_members & (sums > 0))[:, None], weighted / sums[:, None], boxes.double()).float()
    parts = [(mean[is_best], scores[is_best], labels[is_best])]
    if soft:
        rescored = scores * (1 - overlap)
        stays = has_members[owner] & (rescored >= MIN_SOFT_SCORE)
        parts.append((boxes[stays], rescored[stays], labels[stays]))
    boxes, scores, labels = (torch.cat(values) for values in zip(*parts, strict=True))
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order], labels[order]


def _find_owners(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return the index of the best box of each box's cluster, and the IoU with it; each of shape (K,).

    One round finds the next cluster of every class at once.
    """
    count = len(scores)
    rank = torch.empty(count, dtype=torch.int64, device=scores.device)
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(count, device=scores.device)
    by_rank = rank.argsort()
    class_index = labels.unique(return_inverse=True)[1]
    owner = torch.full_like(rank, -1)
    overlap = torch.zeros_like(scores)
    while (left := (owner < 0).nonzero().squeeze(1)).numel():
        best_rank = torch.full_like(rank, count).scatter_reduce(0, class_index[left], rank[left], "amin")
        best = by_rank[best_rank[class_index[left]]]
        ious = box_ops.iou(boxes[best], boxes[left])
        joins = (ious >= threshold) | (best == left)
        owner[left[joins]], overlap[left[joins]] = best[joins], ious[joins]
    return owner, overlap


if COMPILED_DEVICES:

    @torch.library.register_fake("atss::box_vote")
    def _(
        boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, soft: bool, min_score: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = torch.library.get_ctx().new_dynamic_size()
        voted = boxes.new_empty((count, 4), dtype=torch.float32)
        return voted, voted.new_empty(count), voted.new_empty(count, dtype=torch.int64)
