"""Sigmoid focal loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from atss_core.layers.extension import COMPILED_DEVICES, is_compiled, refuse_second_derivative

# A logit whose sigmoid is 1 in float64 too.
_SATURATED = 88.0


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Sum the focal loss (arXiv 1708.02002, equation 5) over anchors and classes.

    Args:
        logits: any floating type, shape (K, C).
        labels: int64, shape (K,): object class 1..C, 0 background, -1 ignored.
        gamma: focusing exponent, 0 or more; higher values reduce the loss of well-classified examples.
        alpha: weight of positives, from 0 to 1; negatives weigh 1 - alpha.

    Returns:
        The sum, a float32 scalar (float64 for float64 logits).

    Raises:
        ValueError: if shapes or types do not fit or, on the CPU, a label is out of range (under
            ``torch.compile`` only the compiled operator sees that).
    """
    if is_compiled(logits.device):
        return torch.ops.atss.sigmoid_focal_loss(logits, labels, gamma, alpha)
    _check(logits, labels, gamma, alpha)
    # A positive's term equals a negative's with -x for x and alpha for 1 - alpha. torchvision's loss goes
    # through 1 - p, which rounds small losses to zero and has no gradient at large logits.
    classes = torch.arange(1, logits.shape[1] + 1, device=labels.device)
    is_object = labels[:, None] == classes
    is_counted = labels[:, None] >= 0
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    exact = torch.where(is_counted, exact, 0.0)  # otherwise an ignored NaN has a NaN gradient
    signed = torch.where(is_object, -exact, exact)
    # Beyond _SATURATED the focus is 1. Its zero slope must not be multiplied by gamma * softplus, which can
    # overflow.
    focus = torch.exp(gamma * F.logsigmoid(signed.clamp(max=_SATURATED))) if gamma else 1.0
    losses = focus * F.softplus(signed)
    # Python numbers would be rounded to float32 here.
    weights = torch.where(is_object, exact.new_full((), alpha), exact.new_full((), 1 - alpha))
    return torch.where(is_counted, weights * losses, 0.0).sum()


def _check(logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> None:
    """Raise ValueError unless logits (K, C) and int64 labels (K,) fit.

    Label values are read on the CPU only, and not under ``torch.compile``, where reading breaks the graph.
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


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, float], output: Tensor) -> None:
    logits, labels, ctx.gamma, ctx.alpha = inputs
    ctx.save_for_backward(logits, labels)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    gradient = torch.ops.atss.sigmoid_focal_loss_backward(grad, *ctx.saved_tensors, ctx.gamma, ctx.alpha)
    return gradient, None, None, None


if COMPILED_DEVICES:
    torch.library.register_autograd("atss::sigmoid_focal_loss", _backward, setup_context=_setup_context)
    torch.library.register_autograd("atss::sigmoid_focal_loss_backward", refuse_second_derivative)

    @torch.library.register_fake("atss::sigmoid_focal_loss")
    def _(logits: Tensor, *others: Any) -> Tensor:
        return logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32))

    @torch.library.register_fake("atss::sigmoid_focal_loss_backward")
    def _(grad: Tensor, logits: Tensor, *others: Any) -> Tensor:
        return torch.empty_like(logits, memory_format=torch.contiguous_format)
