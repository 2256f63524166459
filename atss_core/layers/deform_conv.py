"""Deformable convolution (DCNv1, arXiv 1703.06211; DCNv2, arXiv 1811.11168)."""

import torch
from torch import Tensor, nn
from torchvision import ops


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
        return ops.deform_conv2d(
            x, offset, self.conv.weight, self.conv.bias, stride=self.stride, padding=self.padding, mask=mask
        )
