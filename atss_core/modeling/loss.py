"""Training loss: focal for classes, GIoU for boxes, binary cross entropy for centerness.

All terms are masked sums over all anchors of the batch, so a training step never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from atss_core.layers import sigmoid_focal_loss
from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners import IGNORED, Assigner, pad
from atss_core.modeling.box_coder import Coder
from atss_core.modeling.head import HeadOutputs, flatten_level
from atss_core.structures import BoxList
from atss_core.structures import boxes as box_ops
from atss_core.utils import dist


@dataclass(frozen=True)
class AnchorTargets:
    """What each anchor should predict.

    Attributes:
        labels: 1..C object, 0 background, -1 ignored; int64, shape (N, K).
        boxes: the matched box of a positive anchor, the anchor itself elsewhere; shape (N, K, 4).
        centerness: of a positive anchor in its box, 0 elsewhere; shape (N, K).
    """

    labels: Tensor
    boxes: Tensor
    centerness: Tensor

    @property
    def is_positive(self) -> Tensor:
        """Mask of the positives, shape (N, K)."""
        return self.labels > 0


class AtssLoss:
    """The three loss terms (paper, section 3; FCOS, arXiv 1904.01355, section 3.2).

    Args:
        assigner: chooses the positives.
        box_coder: decodes the head's box codes.
        alpha: of the focal loss.
        gamma: of the focal loss.
        box_weight: factor of the box term.
    """

    def __init__(
        self,
        assigner: Assigner,
        box_coder: Coder,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        box_weight: float = 2.0,
    ) -> None:
        self.assigner = assigner
        self.box_coder = box_coder
        self.alpha = alpha
        self.gamma = gamma
        self.box_weight = box_weight

    def __call__(
        self,
        outputs: HeadOutputs,
        anchors: Anchors,
        targets: Sequence[BoxList],
        normalizers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the scalars ``loss_cls``, ``loss_reg`` and ``loss_centerness``; their sum is the loss.

        Args:
            outputs: of the head.
            anchors: of the same batch.
            targets: the ground truth of each image.
            normalizers: what ``self.normalizers`` returned, if this is a part of a larger batch; None if
                these images and those of the other processes are all of it.
        """
        wanted = self.targets(anchors, targets)
        num_positives, total_quality = self.normalizers([wanted]) if normalizers is None else normalizers
        num_classes = outputs.cls_logits[0].shape[1] // anchors.per_place
        logits = flatten_levels(outputs.cls_logits, num_classes)
        codes = flatten_levels(outputs.box_codes, 4)
        centerness = flatten_levels(outputs.centerness, 1).squeeze(-1)

        is_positive, quality = wanted.is_positive, wanted.centerness
        # Zero codes elsewhere decode to the anchor, so that nothing there can overflow into the gradient.
        decoded = self.box_coder.decode(torch.where(is_positive[..., None], codes, 0.0), anchors.boxes)
        box_losses = giou_loss(decoded, wanted.boxes) * quality
        centerness_losses = F.binary_cross_entropy_with_logits(centerness, quality, reduction="none")
        class_loss = sigmoid_focal_loss(
            logits.flatten(0, 1), wanted.labels.flatten(), gamma=self.gamma, alpha=self.alpha
        )
        return {
            "loss_cls": class_loss / num_positives,
            "loss_reg": self.box_weight * box_losses.sum() / total_quality,
            "loss_centerness": torch.where(is_positive, centerness_losses, 0.0).sum() / num_positives,
        }

    @torch.no_grad()
    def normalizers(self, parts: Sequence[AnchorTargets]) -> Tensor:
        """Return what the loss terms are divided by: positives, and their centerness; both over processes.

        The gradient of a batch, summed over its parts and averaged over the processes, is then that of the
        whole batch in one process. At least one positive counts in all; the published code counts at least
        one a process.

        Args:
            parts: all of this process's part of the batch.
        """
        positives = torch.stack([part.is_positive.sum() for part in parts]).sum()
        quality = torch.stack([part.centerness.sum() for part in parts]).sum()
        totals = dist.sum_over_processes(torch.stack([positives.float(), quality]))
        # Without a positive the sum of box losses is zero, whatever it is divided by.
        totals = torch.stack([totals[0].clamp(min=1), torch.where(totals[1] > 0, totals[1], 1.0)])
        return totals / dist.world_size()

    @torch.no_grad()
    def targets(self, anchors: Anchors, targets: Sequence[BoxList]) -> AnchorTargets:
        """Match the anchors to the ground truth and look up labels and boxes.

        Raises:
            ValueError: if a target has no labels.
        """
        labels = []
        for target in targets:
            if target.labels is None:
                raise ValueError("training needs labels: BoxList(boxes, image_size=..., labels=...)")
            labels.append(target.labels)
        boxes = [target.boxes.float() for target in targets]
        matched = self.assigner(anchors, boxes)
        anchor_boxes = anchors.boxes.expand(len(boxes), -1, -1)
        padded_boxes, _ = pad(boxes)
        if padded_boxes.shape[1] == 0:
            return AnchorTargets(
                torch.zeros_like(matched), anchor_boxes, anchor_boxes.new_zeros(matched.shape)
            )
        padded_labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)
        is_positive = matched >= 0
        index = matched.clamp(min=0)
        matched_boxes = padded_boxes.gather(1, index[..., None].expand(-1, -1, 4))
        matched_boxes = torch.where(is_positive[..., None], matched_boxes, anchor_boxes)
        unmatched = -(matched == IGNORED).long()  # -1 ignored, 0 background
        return AnchorTargets(
            labels=torch.where(is_positive, padded_labels.gather(1, index), unmatched),
            boxes=matched_boxes,
            centerness=torch.where(is_positive, centerness_target(anchors.boxes, matched_boxes), 0.0),
        )


def flatten_levels(levels: Sequence[Tensor], num_values: int) -> Tensor:
    """Bring levels of (N, A * num_values, H, W) to one float32 tensor (N, K, num_values)."""
    return torch.cat([flatten_level(level, num_values) for level in levels], dim=1).float()


def centerness_target(anchor_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Return how central the anchors' centres are in boxes (FCOS, arXiv 1904.01355, equation 3).

    Args:
        anchor_boxes: shape (..., 4).
        boxes: shape (..., 4), each around the centre of its anchor.

    Returns:
        1 at the centre of the box, 0 on its border; shape (...).
    """
    distances = box_ops.distances_to_sides(box_ops.centers(anchor_boxes), boxes)
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    ratio = horizontal.amin(-1) / horizontal.amax(-1) * (vertical.amin(-1) / vertical.amax(-1))
    return ratio.clamp(min=0).sqrt()


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - GIoU (arXiv 1902.09630) of boxes paired with targets, shape (...).

    As in the published code, sides are plain differences here, without the inclusive pixel; a predicted box
    of negative side counts as empty; and 1e-7 keeps the divisions defined.

    Args:
        boxes: predictions, shape (..., 4).
        targets: shape (..., 4).
    """
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
