"""Training loss: focal for classes, one of the box losses, binary cross entropy for centerness.

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
from atss_core.modeling.box_loss import BoxLoss
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
        box_weights: factor of a positive anchor's box term: the centerness that it should predict, or 1 if
            there is no centerness; 0 elsewhere; shape (N, K).
    """

    labels: Tensor
    boxes: Tensor
    box_weights: Tensor

    @property
    def is_positive(self) -> Tensor:
        """Mask of the positives, shape (N, K)."""
        return self.labels > 0


class AtssLoss:
    """The loss terms (paper, section 3; FCOS, arXiv 1904.01355, section 3.2).

    Args:
        assigner: chooses the positives.
        box_loss: compares the head's box codes with the boxes of the positives.
        alpha: of the focal loss.
        gamma: of the focal loss.
        box_weight: factor of the box term.
        use_centerness: train the centerness, and weigh the positives of the box term by it.
    """

    def __init__(
        self,
        assigner: Assigner,
        box_loss: BoxLoss,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        box_weight: float = 2.0,
        use_centerness: bool = True,
    ) -> None:
        self.assigner = assigner
        self.box_loss = box_loss
        self.alpha = alpha
        self.gamma = gamma
        self.box_weight = box_weight
        self.use_centerness = use_centerness

    def __call__(
        self,
        outputs: HeadOutputs,
        anchors: Anchors,
        targets: Sequence[BoxList],
        normalizers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the scalars ``loss_cls``, ``loss_reg`` and ``loss_centerness``; their sum is the loss.

        Without centerness there is no ``loss_centerness``.

        Args:
            outputs: of the head.
            anchors: of the same batch.
            targets: the ground truth of each image.
            normalizers: what ``self.normalizers`` returned, if this is a part of a larger batch; None if
                these images and those of the other processes are all of it.
        """
        assert (outputs.centerness is not None) == self.use_centerness, "head and loss must agree"
        wanted = self.targets(anchors, targets)
        num_positives, total_weight = self.normalizers([wanted]) if normalizers is None else normalizers
        num_classes = outputs.cls_logits[0].shape[1] // anchors.num_anchors
        logits = flatten_levels(outputs.cls_logits, num_classes)
        codes = flatten_levels(outputs.box_codes, 4)

        is_positive = wanted.is_positive
        # Zero codes elsewhere mean the anchor, so that nothing there can overflow into the gradient.
        codes = torch.where(is_positive[..., None], codes, 0.0)
        box_losses = self.box_loss(codes, anchors.boxes, wanted.boxes) * wanted.box_weights
        class_loss = sigmoid_focal_loss(
            logits.flatten(0, 1), wanted.labels.flatten(), gamma=self.gamma, alpha=self.alpha
        )
        losses = {
            "loss_cls": class_loss / num_positives,
            "loss_reg": self.box_weight * box_losses.sum() / total_weight,
        }
        if outputs.centerness is not None:
            centerness = flatten_levels(outputs.centerness, 1).squeeze(-1)
            centerness_losses = F.binary_cross_entropy_with_logits(
                centerness, wanted.box_weights, reduction="none"
            )
            losses["loss_centerness"] = torch.where(is_positive, centerness_losses, 0.0).sum() / num_positives
        return losses

    @torch.no_grad()
    def normalizers(self, parts: Sequence[AnchorTargets]) -> Tensor:
        """Return what the loss terms are divided by: positives, and their weights; both over processes.

        The gradient of a batch, summed over its parts and averaged over the processes, is then that of the
        whole batch in one process. At least one positive counts in all; the published code counts at least
        one a process.

        Args:
            parts: all of this process's part of the batch.
        """
        positives = torch.stack([part.is_positive.sum() for part in parts]).sum()
        weights = torch.stack([part.box_weights.sum() for part in parts]).sum()
        totals = dist.sum_over_processes(torch.stack([positives.float(), weights]))
        # Without a weight the sum of box losses is zero, whatever it is divided by.
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
        weights = (
            centerness_target(anchors.boxes, matched_boxes)
            if self.use_centerness
            else torch.ones_like(anchor_boxes[..., 0])
        )
        return AnchorTargets(
            labels=torch.where(is_positive, padded_labels.gather(1, index), unmatched),
            boxes=matched_boxes,
            box_weights=torch.where(is_positive, weights, 0.0),
        )


def flatten_levels(levels: Sequence[Tensor], num_values: int) -> Tensor:
    """Bring levels of (N, A * num_values, H, W) to one float32 tensor (N, K, num_values)."""
    return torch.cat([flatten_level(level, num_values) for level in levels], dim=1).float()


def centerness_target(anchor_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Return how central the anchors' centres are in boxes (FCOS, arXiv 1904.01355, equation 3).

    Args:
        anchor_boxes: shape (..., 4).
        boxes: shape (..., 4).

    Returns:
        1 at the centre of the box, 0 on its border and outside; shape (...).
    """
    distances = box_ops.distances_to_sides(box_ops.centers(anchor_boxes), boxes)
    # Two negative ratios would make a positive product. Nor may 0 / 0 happen, on a box without extent.
    distances = distances.clamp(min=0)
    farthest = distances.clamp(min=torch.finfo(distances.dtype).tiny)
    horizontal, vertical = distances[..., 0::2].amin(-1), distances[..., 1::2].amin(-1)
    ratio = horizontal / farthest[..., 0::2].amax(-1) * (vertical / farthest[..., 1::2].amax(-1))
    return ratio.sqrt()
