"""What a wrong box costs: the losses that REG_LOSS_TYPE names.

Each is called with the predicted codes, the anchors and the boxes that they should be, all of shape (..., 4),
and returns the loss of each anchor, shape (...).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from atss_core.modeling.box_coder import Coder
from atss_core.structures.boxes import at_least_float32

# Codes, anchors and boxes -> the loss of each anchor.
BoxLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

# Where smooth-L1 turns from a square to a line: RETINANET.BBOX_REG_BETA of Detectron, about 1/9.
RETINANET_BETA = 0.11


class GiouLoss:
    """1 - GIoU of the decoded boxes.

    Args:
        box_coder: decodes the codes.
    """

    def __init__(self, box_coder: Coder) -> None:
        self.box_coder = box_coder

    def __call__(self, codes: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Return the loss of each anchor, shape (...)."""
        return giou_loss(self.box_coder.decode(codes, anchors), boxes)


class SmoothL1Loss:
    """Smooth-L1 (arXiv 1504.08083, equation 3) of the codes, the mean over the four, as RetinaNet has it.

    RetinaNet's code sums over the codes of all positives and divides by four times their number.

    Args:
        box_coder: encodes the boxes.
        beta: difference of codes from which on the loss grows linearly.
    """

    def __init__(self, box_coder: Coder, beta: float = RETINANET_BETA) -> None:
        self.box_coder = box_coder
        self.beta = beta

    def __call__(self, codes: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Return the loss of each anchor, shape (...)."""
        wanted = self.box_coder.encode(boxes, anchors)
        return F.smooth_l1_loss(codes, wanted, reduction="none", beta=self.beta).mean(dim=-1)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - GIoU (arXiv 1902.09630) of boxes paired with targets, shape (...).

    As in the published code, sides are plain differences here, without the inclusive pixel; a predicted box
    of negative side counts as empty; and 1e-7 keeps the divisions defined.

    Args:
        boxes: predictions, shape (..., 4).
        targets: shape (..., 4).
    """
    boxes, targets = at_least_float32(boxes), at_least_float32(targets)
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
