"""Deformable convolution (DCNv1, arXiv 1703.06211; DCNv2, arXiv 1811.11168)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import ops

from atss_core.layers.extension import COMPILED_DEVICES, is_compiled, refuse_second_derivative

_Pair = Sequence[int]  # (vertical, horizontal)

# An offset in pixels that moves a sample out of any input.
_FAR_OUTSIDE = -1e6


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = (1, 1),
    padding: int | tuple[int, int] = (0, 0),
    dilation: int | tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution: bilinear sampling, zero padding.

    A sample at exactly one pixel outside (-1) is zero and so is its gradient. Under autocast all inputs,
    offsets included, are cast to the autocast type; sums and positions are computed in float32. On CUDA, TF32
    is used where PyTorch would use it: in matrix products, and in convolutions if there are groups.

    Args:
        input: shape (N, C_in, H, W).
        offset: (dy, dx) in pixels per tap and offset group, shape (N, offset groups * 2 * taps, H', W').
        weight: shape (C_out, C_in / groups, kernel height, kernel width).
        bias: shape (C_out,).
        stride: pixels, one number or (vertical, horizontal); also for padding and dilation.
        padding: zeros around the input.
        dilation: distance between taps.
        mask: a factor per sample (DCNv2), shape (N, offset groups * taps, H', W').

    Returns:
        Shape (N, C_out, H', W').

    Raises:
        ValueError: if shapes, types or devices do not fit (RuntimeError from torchvision's operator).
    """
    stride, padding, dilation = (
        (value, value) if isinstance(value, int) else value for value in (stride, padding, dilation)
    )
    dtype = input.dtype
    tensors: Sequence[Any] = (input, offset, weight, bias, mask)
    device_type = input.device.type
    is_autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    if is_autocast and dtype != torch.float64:  # convolutions do not cast float64 either
        dtype = torch.get_autocast_dtype(device_type)
        tensors = _cast(tensors, dtype)
    if is_compiled(input.device):
        return torch.ops.atss.deform_conv2d(*tensors, stride, padding, dilation)
    # torchvision has no half types on the CPU.
    is_half = dtype in (torch.float16, torch.bfloat16)
    input, offset, weight, bias, mask = _cast(tensors, torch.float32) if is_half else tensors
    if not torch.compiler.is_exporting():  # an exported graph needs no gradient
        offset = _move_outside_samples(offset, input.shape[-2:], weight.shape[-2:], stride, padding, dilation)
    return ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask).to(dtype)


def _move_outside_samples(
    offset: Tensor, input_size: _Pair, kernel_size: _Pair, stride: _Pair, padding: _Pair, dilation: _Pair
) -> Tensor:
    """Move samples outside the input, or at NaN, far out, where torchvision gives zeros.

    At exactly -1 torchvision's sample is zero but its offset gradient is not. For NaN offsets, or offsets
    beyond the range of int, torchvision may read out of bounds.
    """
    rows, columns = (
        torch.arange(kernel_size[axis], device=offset.device)[:, None] * dilation[axis]
        + torch.arange(offset.shape[2 + axis], device=offset.device) * stride[axis]
        - padding[axis]
        for axis in range(2)
    )
    offsets = offset.unflatten(1, (-1, *kernel_size, 2))
    y = rows[:, None, :, None] + offsets[:, :, :, :, 0]
    x = columns[:, None] + offsets[:, :, :, :, 1]
    is_inside = (y > -1) & (y < input_size[0]) & (x > -1) & (x < input_size[1])
    return torch.where(is_inside[:, :, :, :, None], offsets, _FAR_OUTSIDE).flatten(1, 4)


def _cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


class DeformConv2d(nn.Module):
    """Deformable convolution that predicts its own offsets and, if ``modulated``, masks.

    Parameters ``offset.*`` and ``conv.*`` have the names of the published checkpoints. ``offset`` predicts
    (dy, dx) per tap for all offset groups, then, if modulated, one mask logit per tap for all offset groups.

    Args:
        kernel_size: side of the square kernel.
        groups: groups of the convolution.
        offset_groups: groups of input channels that share their offsets (DEFORMABLE_GROUPS).
        modulated: DCNv2 if true, DCNv1 if false.
        bias: whether the convolution has a bias; the offset prediction always has one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        offset_groups: int = 1,
        modulated: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if in_channels % offset_groups:
            raise ValueError(f"offset_groups must divide in_channels {in_channels}, got {offset_groups}")
        self.stride = stride
        self.padding = kernel_size // 2
        self.num_offsets = 2 * offset_groups * kernel_size**2
        num_masks = offset_groups * kernel_size**2 if modulated else 0
        self.offset = nn.Conv2d(
            in_channels, self.num_offsets + num_masks, kernel_size, stride=stride, padding=self.padding
        )
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, groups=groups, bias=bias)
        # Start as a plain convolution: zero offsets (both papers), all masks one half (DCNv2).
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (N, in_channels, H, W) to (N, out_channels, H', W')."""
        predicted = self.offset(x)
        offset, mask_logits = predicted.tensor_split([self.num_offsets], dim=1)
        mask = torch.sigmoid(mask_logits) if mask_logits.shape[1] else None
        return deform_conv2d(
            x, offset, self.conv.weight, self.conv.bias, stride=self.stride, padding=self.padding, mask=mask
        )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, offset, weight, _, mask, *ctx.geometry = inputs
    ctx.save_for_backward(images, offset, weight, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_input, needs_offset, needs_weight, needs_bias, needs_mask = ctx.needs_input_grad[:5]
    is_needed = [needs_input, needs_offset, needs_weight, needs_mask]
    computed = torch.ops.atss.deform_conv2d_backward(grad, *ctx.saved_tensors, *ctx.geometry, is_needed)
    gradients = [value if needed else None for value, needed in zip(computed, is_needed, strict=True)]
    gradients.insert(3, grad.sum((0, 2, 3)) if needs_bias else None)
    return (*gradients, None, None, None)


if COMPILED_DEVICES:
    torch.library.register_autograd("atss::deform_conv2d", _backward, setup_context=_setup_context)
    torch.library.register_autograd("atss::deform_conv2d_backward", refuse_second_derivative)

    @torch.library.register_fake("atss::deform_conv2d")
    def _(images: Tensor, offset: Tensor, weight: Tensor, *others: Any) -> Tensor:
        size = (images.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])
        return images.new_empty(size).to(memory_format=torch._prims_common.suggest_memory_format(images))

    @torch.library.register_fake("atss::deform_conv2d_backward")
    def _(
        grad: Tensor, images: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *others: Any
    ) -> tuple[Tensor, ...]:
        is_needed = others[-1]
        shapes = [images.shape, offset.shape, weight.shape, (0,) if mask is None else mask.shape]
        gradients = [
            images.new_empty(s if needed else 0) for s, needed in zip(shapes, is_needed, strict=True)
        ]
        if is_needed[0]:
            memory_format = torch._prims_common.suggest_memory_format(images)
            gradients[0] = gradients[0].to(memory_format=memory_format)
        return tuple(gradients)
