"""Sigmoid focal loss."""

import torch
from torch import Tensor
from torchvision import ops


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Sum the focal loss (arXiv 1708.02002, equation 5) over anchors and classes.

    Args:
        logits: shape (K, C).
        labels: int64, shape (K,): 1..C is an object of that class, 0 background, -1 ignored.
        gamma: how strongly well-classified examples are played down.
        alpha: weight of objects; background weighs 1 - alpha.

    Returns:
        The sum, a scalar in float32.
    """
    classes = torch.arange(1, logits.shape[1] + 1, device=labels.device)
    targets = (labels[:, None] == classes).float()
    losses = ops.sigmoid_focal_loss(logits.float(), targets, alpha=alpha, gamma=gamma)
    return torch.where(labels[:, None] >= 0, losses, 0.0).sum()
