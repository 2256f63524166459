"""Training criterion: label assignment, then focal loss, box loss and centerness loss.

All terms are masked sums over all anchors of a batch, so a training step never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from atss_core.layers import sigmoid_focal_loss
from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners import IGNORED, Assigner
from atss_core.modeling.box_coder import Coder
from atss_core.modeling.head import HeadOutputs, flatten_level
from atss_core.structures import BoxList
from atss_core.structures import boxes as box_ops
from atss_core.utils import dist

# Encoded predictions, anchors and ground-truth boxes, each (..., 4) -> the loss of each anchor (...).
BoxLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

# Where smooth-L1 turns from a square to a line: RETINANET.BBOX_REG_BETA of Detectron, about 1/9.
RETINANET_BETA = 0.11


@dataclass(frozen=True)
class Matched:
    """Training targets of the anchors of one micro-batch.

    Attributes:
        anchors: of every image.
        labels: 1..C object, 0 background, -1 ignored; int64, shape (N, K).
        gt_boxes: ground-truth box of a positive anchor, the anchor itself elsewhere; shape (N, K, 4).
        box_weights: weight of a positive anchor's box term: its centerness target, or 1 without centerness; 0
            elsewhere; shape (N, K).
        normalizers: number of positives and sum of ``box_weights``, to divide the terms by; shape (2,).
    """

    anchors: Anchors
    labels: Tensor
    gt_boxes: Tensor
    box_weights: Tensor
    normalizers: Tensor

    @property
    def is_positive(self) -> Tensor:
        """Mask of the positives, shape (N, K)."""
        return self.labels > 0


@torch.no_grad()
def share_normalizers(micro_batches: Sequence[Matched]) -> list[Matched]:
    """Give the micro-batches of one update the normalizers of all of them, over all processes.

    These are divided by the number of processes: the gradient, summed over micro-batches and averaged over
    processes, then equals that of the whole batch in one process.
    """
    totals = torch.stack([matched.normalizers for matched in micro_batches], dim=1).sum(dim=1)
    totals = dist.sum_over_processes(totals) / dist.world_size()
    return [replace(matched, normalizers=totals) for matched in micro_batches]


class Criterion(Protocol):
    """Interface of a loss that the detector trains with."""

    def match(self, anchors: Anchors, targets: Sequence[BoxList]) -> Matched:
        """Assign the anchors to the ground truth of each image."""

    def __call__(self, outputs: HeadOutputs, matched: Matched) -> dict[str, Tensor]:
        """Return the loss terms by name; their sum is the loss."""


@dataclass
class AtssLoss:
    """The loss terms (paper, section 3; FCOS, arXiv 1904.01355, section 3.2).

    Args:
        assigner: chooses the positives.
        box_loss: of each anchor, from encoded predictions.
        alpha: focal loss, weight of the positives.
        gamma: focal loss, exponent.
        box_weight: factor of the box term.
        use_centerness: train the centerness and weight the box terms with it; the head must agree.
    """

    assigner: Assigner
    box_loss: BoxLoss
    _: KW_ONLY
    alpha: float = 0.25
    gamma: float = 2.0
    box_weight: float = 2.0
    use_centerness: bool = True

    @torch.no_grad()
    def match(self, anchors: Anchors, targets: Sequence[BoxList]) -> Matched:
        """Assign the anchors to the ground truth and look up labels and boxes.

        Raises:
            ValueError: if a target has no labels.
        """
        labels = [target.labels for target in targets if target.labels is not None]
        if len(labels) < len(targets):
            raise ValueError(
                "targets: expected labels in training, got a BoxList without. "
                "Pass BoxList(boxes, image_size, labels)."
            )
        boxes = [target.boxes.float() for target in targets]
        matched_idx = self.assigner(anchors, boxes)
        is_positive = matched_idx >= 0
        index = matched_idx.clamp(min=0)
        # One row more, so that a batch without ground truth has a row to look up.
        padded_boxes = F.pad(pad_sequence(boxes, batch_first=True), (0, 0, 0, 1))
        padded_labels = F.pad(pad_sequence(labels, batch_first=True), (0, 1))
        gt_boxes = padded_boxes.gather(1, index[..., None].expand(-1, -1, 4))
        gt_boxes = torch.where(is_positive[..., None], gt_boxes, anchors.boxes)
        unmatched = -(matched_idx == IGNORED).long()  # -1 ignored, 0 background
        box_weights = is_positive.float()
        if self.use_centerness:
            box_weights = torch.where(is_positive, centerness_target(anchors.boxes, gt_boxes), 0.0)
        return Matched(
            anchors,
            labels=torch.where(is_positive, padded_labels.gather(1, index), unmatched),
            gt_boxes=gt_boxes,
            box_weights=box_weights,
            normalizers=torch.stack([is_positive.sum().float(), box_weights.sum()]),
        )

    def __call__(self, outputs: HeadOutputs, matched: Matched) -> dict[str, Tensor]:
        """Return the scalars ``loss_cls``, ``loss_reg`` and, with centerness, ``loss_centerness``.

        Raises:
            ValueError: if head and anchors have different grids, or only one of head and loss has centerness.
        """
        anchors, is_positive = matched.anchors, matched.is_positive
        if tuple(outputs.grid_sizes) != anchors.grid_sizes:
            raise ValueError(
                f"backbone: expected levels of {anchors.grid_sizes} cells (image size / stride, rounded up), "
                f"got {tuple(outputs.grid_sizes)}. Pad its convolutions."
            )
        if (outputs.centerness is not None) != self.use_centerness:
            raise ValueError(
                f"use_centerness: expected {not self.use_centerness} like the head, got "
                f"{self.use_centerness}. MODEL.ATSS.USE_CENTERNESS sets it."
            )
        # At least one positive counts in all; the published code counts at least one per process.
        num_positives = matched.normalizers[0].clamp(min=1 / dist.world_size())
        # Without any weight the sum of box losses is zero, whatever it is divided by.
        total_weight = torch.where(matched.normalizers[1] > 0, matched.normalizers[1], 1.0)

        num_classes = outputs.cls_logits[0].shape[1] // anchors.num_anchors
        logits = flatten_levels(outputs.cls_logits, num_classes)
        class_loss = sigmoid_focal_loss(
            logits.flatten(0, 1), matched.labels.flatten(), gamma=self.gamma, alpha=self.alpha
        )
        # Zero deltas stand for the anchor, so nothing outside the positives can overflow into the gradient.
        encoded = torch.where(is_positive[..., None], flatten_levels(outputs.encoded_boxes, 4), 0.0)
        box_losses = self.box_loss(encoded, anchors.boxes, matched.gt_boxes) * matched.box_weights
        losses = {
            "loss_cls": class_loss / num_positives,
            "loss_reg": self.box_weight * box_losses.sum() / total_weight,
        }
        if outputs.centerness is not None:
            centerness = flatten_levels(outputs.centerness, 1).squeeze(-1)
            each = F.binary_cross_entropy_with_logits(centerness, matched.box_weights, reduction="none")
            losses["loss_centerness"] = torch.where(is_positive, each, 0.0).sum() / num_positives
        return losses


def flatten_levels(levels: Sequence[Tensor], num_values: int) -> Tensor:
    """Bring levels of (N, A * num_values, H, W) to one float32 tensor (N, K, num_values)."""
    return torch.cat([flatten_level(level, num_values) for level in levels], dim=1).float()


def centerness_target(anchor_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Return the centerness (...) of anchor centres in boxes (FCOS, arXiv 1904.01355, equation 3).

    It is 1 at the centre of the box, 0 on its border and outside. Both arguments have shape (..., 4).
    """
    distances = box_ops.distances_to_sides(box_ops.centers(anchor_boxes), gt_boxes)
    # Two negative ratios would make a positive product; a box without extent would make 0 / 0.
    distances = distances.clamp(min=0)
    farthest = distances.clamp(min=torch.finfo(distances.dtype).tiny)
    horizontal, vertical = distances[..., 0::2].amin(-1), distances[..., 1::2].amin(-1)
    ratio = horizontal / farthest[..., 0::2].amax(-1) * (vertical / farthest[..., 1::2].amax(-1))
    return ratio.sqrt()


@dataclass
class GiouLoss:
    """1 - GIoU of the decoded boxes."""

    box_coder: Coder

    def __call__(self, encoded: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """Return the loss of each anchor, shape (...)."""
        return giou_loss(self.box_coder.decode(encoded, anchors), gt_boxes)


@dataclass
class SmoothL1Loss:
    """Smooth-L1 (arXiv 1504.08083, equation 3) of the encoded boxes, averaged over their four numbers.

    RetinaNet's code sums over all positives and divides by four times their number.

    Args:
        box_coder: encodes the ground truth.
        beta: difference from which on the loss grows linearly.
    """

    box_coder: Coder
    beta: float = RETINANET_BETA

    def __call__(self, encoded: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """Return the loss of each anchor, shape (...)."""
        targets = self.box_coder.encode(gt_boxes, anchors)
        return F.smooth_l1_loss(encoded, targets, reduction="none", beta=self.beta).mean(dim=-1)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - GIoU (arXiv 1902.09630) of predictions (..., 4) and their targets (..., 4), shape (...).

    As in the published code, sides are plain differences here, without the inclusive pixel; a prediction with
    a negative side is empty; and 1e-7 keeps the divisions defined.
    """
    boxes, targets = box_ops.at_least_float32(boxes), box_ops.at_least_float32(targets)
    top_left, bottom_right = boxes[..., :2], torch.maximum(boxes[..., 2:], boxes[..., :2])
    target_top_left, target_bottom_right = targets[..., :2], targets[..., 2:]

    def box_area(first: Tensor, last: Tensor) -> Tensor:
        sides = last - first
        return sides[..., 0] * sides[..., 1]

    overlap_first = torch.maximum(top_left, target_top_left)
    overlap_last = torch.minimum(bottom_right, target_bottom_right)
    # Boxes that only touch do not overlap, in the gradient as well.
    overlaps = (overlap_last > overlap_first).all(dim=-1)
    intersection = torch.where(overlaps, box_area(overlap_first, overlap_last), 0.0)
    hull = box_area(
        torch.minimum(top_left, target_top_left), torch.maximum(bottom_right, target_bottom_right)
    )
    union = box_area(top_left, bottom_right) + box_area(target_top_left, target_bottom_right) - intersection
    hull, union = hull + 1e-7, union + 1e-7
    return 1 - (intersection / union - (hull - union) / hull)
