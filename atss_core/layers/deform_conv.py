"""Deformable convolution (DCNv1, arXiv 1703.06211; DCNv2, arXiv 1811.11168)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import ops

from atss_core.layers.extension import COMPILED_DEVICES, is_compiled, refuse_second_derivative

# An offset in pixels that leaves any input.
FAR_OUT = -1e6


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
    """Convolve at moved places, interpolating bilinearly; zero lies beyond the input.

    A sample at exactly one pixel outside (-1) is zero and so is its gradient. Under autocast everything,
    offsets included, is brought to its type; sums and places are computed in float32. On CUDA TF32 is used
    where PyTorch would use it: in matrix products, and in convolutions where there are groups.

    Args:
        input: shape (N, C_in, H, W).
        offset: (dy, dx) of every tap in pixels for each offset group, shape
            (N, offset groups * 2 * taps, H', W').
        weight: shape (C_out, C_in / groups, kernel height, kernel width).
        bias: shape (C_out,).
        stride: pixels, of both axes or (vertical, horizontal); so are padding and dilation.
        padding: zeros around the input.
        dilation: distance of the taps.
        mask: a factor for each sample (DCNv2), shape (N, offset groups * taps, H', W').

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
    if is_autocast and dtype != torch.float64:  # which convolutions leave alone as well
        dtype = torch.get_autocast_dtype(device_type)
        tensors = _cast(tensors, dtype)
    if is_compiled(input.device):
        return torch.ops.atss.deform_conv2d(*tensors, stride, padding, dilation)
    # torchvision does not know the half types on the CPU.
    is_half = dtype in (torch.float16, torch.bfloat16)
    input, offset, weight, bias, mask = _cast(tensors, torch.float32) if is_half else tensors
    if not torch.compiler.is_exporting():  # what is exported needs no gradient
        offset = _without_border(offset, input.shape[-2:], weight.shape[-2:], stride, padding, dilation)
    return ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask).to(dtype)


def _without_border(
    offset: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Move samples that are not inside the input, or not a number, far out, where torchvision gives zeros.

    At exactly -1 the sample is zero there, but the gradient of its offset is not; and for offsets that are
    not a number, or beyond the range of int, it may read memory that is not its own.
    """
    num_taps = kernel_size[0] * kernel_size[1]
    tap = torch.arange(num_taps, device=offset.device)
    tap_y, tap_x = tap // kernel_size[1] * dilation[0], tap % kernel_size[1] * dilation[1]
    pixel_y, pixel_x = (
        torch.arange(offset.shape[2 + axis], device=offset.device) * stride[axis] - padding[axis]
        for axis in range(2)
    )
    offsets = offset.unflatten(1, (-1, num_taps, 2))
    y = (tap_y[:, None] + pixel_y)[:, :, None] + offsets[:, :, :, 0]
    x = (tap_x[:, None] + pixel_x)[:, None, :] + offsets[:, :, :, 1]
    is_inside = (y > -1) & (y < input_size[0]) & (x > -1) & (x < input_size[1])
    return torch.where(is_inside[:, :, :, None], offsets, FAR_OUT).flatten(1, 3)


def _cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


class DeformConv2d(nn.Module):
    """A convolution that learns where to sample, and with ``modulated`` how strongly.

    The parameter names ``offset.*`` and ``conv.*`` are those of the published checkpoints. ``offset``
    predicts, for each offset group, (dy, dx) of every tap, and then, if modulated, for each group one mask
    logit a tap.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the square kernel.
        stride: pixels.
        groups: groups of the convolution.
        offset_groups: groups of input channels that share their offsets (DEFORMABLE_GROUPS).
        modulated: DCNv2 if true, DCNv1 if false.
        bias: whether the convolution has a bias; the offsets always have one.
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
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Start as a plain convolution: zero offsets (both papers), every mask one half (DCNv2)."""
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


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, offset, weight, _, mask, *ctx.geometry = inputs
    ctx.save_for_backward(images, offset, weight, mask)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    images, offset, weight, mask = ctx.saved_tensors
    by_input, by_offset, by_weight, by_bias, by_mask = ctx.needs_input_grad[:5]
    wanted = [by_input, by_offset, by_weight, by_mask]
    found = torch.ops.atss.deform_conv2d_backward(grad, images, offset, weight, mask, *ctx.geometry, wanted)
    gradients = [gradient if is_wanted else None for gradient, is_wanted in zip(found, wanted, strict=True)]
    gradients.insert(3, grad.sum((0, 2, 3)) if by_bias else None)
    return (*gradients, None, None, None)


if COMPILED_DEVICES:
    torch.library.register_autograd("atss::deform_conv2d", _differentiate, setup_context=_remember)
    torch.library.register_autograd("atss::deform_conv2d_backward", refuse_second_derivative)

    @torch.library.register_fake("atss::deform_conv2d")
    def _(
        images: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
    ) -> Tensor:
        size = (images.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])
        return images.new_empty(size).to(memory_format=torch._prims_common.suggest_memory_format(images))

    @torch.library.register_fake("atss::deform_conv2d_backward")
    def _(
        grad: Tensor,
        images: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        wanted: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shapes = [images.shape, offset.shape, weight.shape, (0,) if mask is None else mask.shape]
        found = [images.new_empty(s if is_wanted else 0) for s, is_wanted in zip(shapes, wanted, strict=True)]
        if wanted[0]:
            found[0] = found[0].to(memory_format=torch._prims_common.suggest_memory_format(images))
        return found[0], found[1], found[2], found[3]
