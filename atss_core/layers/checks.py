"""What the operators expect. The compiled ones check for themselves (csrc/checks.h)."""

from __future__ import annotations

import torch
from torch import Tensor


def check_boxes(boxes: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, dim: int = 2) -> None:
    """Raise ValueError unless boxes (..., 4) of ``dim`` dimensions have one score and label each."""
    if boxes.dim() != dim or boxes.shape[-1] != 4:
        expected = "(N, K, 4)" if dim == 3 else "(K, 4)"
        raise ValueError(f"boxes must be {expected}, got {list(boxes.shape)}")
    for name, values in {"scores": scores, "labels": labels}.items():
        if values is not None and values.shape != boxes.shape[:-1]:
            raise ValueError(
                f"{name} must have one value per box, {list(boxes.shape[:-1])}, got {list(values.shape)}"
            )
    if not (boxes.is_floating_point() and scores.is_floating_point()):
        raise ValueError(f"boxes and scores must be floating point, got {boxes.dtype} and {scores.dtype}")
    if labels is not None and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if not threshold >= 0:
        raise ValueError(f"the IoU threshold must be 0 or more, got {threshold}")


def check_focal(logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> None:
    """Raise ValueError unless logits (K, C) and int64 labels (K,) fit.

    Values are read on the CPU only, and not under ``torch.compile``, which reading would break apart.
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of shape (K, C), got {logits.dtype} of {list(logits.shape)}"
        )
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 of shape ({len(logits)},), got {labels.dtype} of {list(labels.shape)}"
        )
    if not gamma >= 0:
        raise ValueError(f"gamma must be 0 or more, got {gamma}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
    if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
        for label in (labels.min().item(), labels.max().item()):
            if not -1 <= label <= logits.shape[1]:
                raise ValueError(
                    f"labels must be -1 (ignored), 0 (background) or a class up to {logits.shape[1]}, "
                    f"got {label}"
                )
