"""Box voting, which merges the detections of several scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atss_core.layers.extension import COMPILED_DEVICES, is_compiled
from atss_core.layers.nms import check_boxes
from atss_core.structures import boxes as box_ops

# A soft vote keeps a cluster member beside the mean if its new score is at least this.
MIN_SOFT_SCORE = 0.05


def box_vote(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, soft: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace each cluster of overlapping boxes of a class by its mean.

    A cluster is the highest-scoring box left and all boxes left whose IoU with it reaches the threshold. A
    cluster of several boxes becomes their mean weighted by score (arXiv 1505.01749, section 5) with the
    highest of their scores. A soft vote also keeps its members with score s * (1 - IoU with the top box),
    if that is at least 0.05. Boxes that are not finite stay alone.

    Args:
        boxes: inclusive (x1, y1, x2, y2) in pixels, any floating type, shape (K, 4).
        scores: not negative, shape (K,).
        labels: class of each box, any integers, shape (K,).
        threshold: IoU from which on a box joins the cluster of a higher-scoring one.
        soft: whether to keep rescored members.

    Returns:
        Boxes (V, 4) and scores (V,) in float32 and labels (V,) int64, by descending score. At equal scores
        means precede members, both in input order. They carry no gradient.

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
    top_idx, ious = _find_clusters(boxes, scores, labels, threshold)
    is_top = top_idx == torch.arange(len(top_idx), device=top_idx.device)
    sums = scores.new_zeros(len(scores), dtype=torch.float64).index_add_(0, top_idx, scores.double())
    weighted = boxes.double() * scores[:, None]
    weighted = torch.zeros_like(weighted).index_add_(0, top_idx, weighted)
    has_members = torch.bincount(top_idx, minlength=len(top_idx)) > 1
    mean = torch.where((has_members & (sums > 0))[:, None], weighted / sums[:, None], boxes.double()).float()
    votes = [(mean[is_top], scores[is_top], labels[is_top])]
    if soft:
        rescored = scores * (1 - ious)
        is_kept = has_members[top_idx] & (rescored >= MIN_SOFT_SCORE)
        votes.append((boxes[is_kept], rescored[is_kept], labels[is_kept]))
    boxes, scores, labels = (torch.cat(values) for values in zip(*votes, strict=True))
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order], labels[order]


def _find_clusters(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return for each box the index of its cluster's highest-scoring box, and the IoU with it, each (K,).

    One iteration finds the next cluster of every class at once.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, classes = boxes[order], labels[order].unique(return_inverse=True)[1]
    top_rank = torch.full_like(order, -1)
    ious = torch.zeros_like(scores)
    while (left := (top_rank < 0).nonzero().squeeze(1)).numel():
        top = torch.full_like(order, len(order)).scatter_reduce(0, classes[left], left, "amin")[classes[left]]
        overlap = box_ops.iou(boxes[top], boxes[left])
        joins = (overlap >= threshold) | (top == left)
        top_rank[left[joins]], ious[left[joins]] = top[joins], overlap[joins]
    rank = order.argsort()
    return order[top_rank][rank], ious[rank]


if COMPILED_DEVICES:

    @torch.library.register_fake("atss::box_vote")
    def _(boxes: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        count = torch.library.get_ctx().new_dynamic_size()
        voted = boxes.new_empty((count, 4), dtype=torch.float32)
        return voted, voted.new_empty(count), voted.new_empty(count, dtype=torch.int64)
