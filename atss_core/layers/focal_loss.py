"""Sigmoid focal loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from atss_core.layers.checks import check_focal
from atss_core.layers.extension import COMPILED_DEVICES, is_compiled, refuse_second_derivative

# A logit whose sigmoid is 1 in float64 as well.
SATURATED = 88.0


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Sum the focal loss (arXiv 1708.02002, equation 5) over anchors and classes.

    Args:
        logits: of any floating type, shape (K, C).
        labels: int64, shape (K,): 1..C is an object of that class, 0 background, -1 ignored.
        gamma: how strongly well-classified examples are played down; 0 or more.
        alpha: weight of objects, from 0 to 1; background weighs 1 - alpha.

    Returns:
        The sum, a scalar in float32 (float64 for float64 logits).

    Raises:
        ValueError: if shapes or types do not fit or, on the CPU, a label is out of range (under
            ``torch.compile`` only the compiled operator sees that).
    """
    if is_compiled(logits.device):
        return torch.ops.atss.sigmoid_focal_loss(logits, labels, gamma, alpha)
    check_focal(logits, labels, gamma, alpha)
    # An object's term is that of background with -x for x and alpha for 1 - alpha. torchvision's loss
    # computes the same through 1 - p, which loses small losses and has no gradient at large logits.
    classes = torch.arange(1, logits.shape[1] + 1, device=labels.device)
    is_object = labels[:, None] == classes
    is_counted = labels[:, None] >= 0
    exact = logits if logits.dtype == torch.float64 else logits.float()
    exact = torch.where(is_counted, exact, 0.0)  # or the gradient of an ignored NaN is NaN
    signed = torch.where(is_object, -exact, exact)
    # From SATURATED on the focus is 1, and its slope of 0 must not meet gamma * softplus, which can overflow.
    focus = torch.exp(gamma * F.logsigmoid(signed.clamp(max=SATURATED))) if gamma else 1.0
    losses = focus * F.softplus(signed)
    # Numbers in Python would be rounded to float32 here.
    weights = torch.where(is_object, exact.new_full((), alpha), exact.new_full((), 1 - alpha))
    return torch.where(is_counted, weights * losses, 0.0).sum()


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, float, float], output: Tensor) -> None:
    logits, labels, ctx.gamma, ctx.alpha = inputs
    ctx.save_for_backward(logits, labels)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    backward = torch.ops.atss.sigmoid_focal_loss_backward
    return backward(grad, *ctx.saved_tensors, ctx.gamma, ctx.alpha), None, None, None


if COMPILED_DEVICES:
    torch.library.register_autograd("atss::sigmoid_focal_loss", _differentiate, setup_context=_remember)
    torch.library.register_autograd("atss::sigmoid_focal_loss_backward", refuse_second_derivative)

    @torch.library.register_fake("atss::sigmoid_focal_loss")
    def _(logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
        is_double = logits.dtype == torch.float64
        return logits.new_empty((), dtype=torch.float64 if is_double else torch.float32)

    @torch.library.register_fake("atss::sigmoid_focal_loss_backward")
    def _(grad: Tensor, logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
        return torch.empty_like(logits, memory_format=torch.contiguous_format)
