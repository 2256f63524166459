"""Feature pyramid (arXiv 1612.03144) with the two extra levels of RetinaNet (arXiv 1708.02002)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from atss_core.modeling.backbone.resnet import Norm


class TopBlocks(nn.Module):
    """P6 and P7 by strided 3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for layer in (self.p6, self.p7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, in_channels, H, W) to P6 and P7 at a half and a quarter of the size."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


class FPN(nn.Module):
    """P3 to P7 from C3 to C5.

    Args:
        in_channels: channels of C3, C4, C5.
        out_channels: channels of every output level.
        norm: builds a normalisation layer; None uses convolutions with bias instead.
        use_relu: add a ReLU after each convolution.
        extra_from_c5: compute P6 from C5 if true, else from P5.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        norm: Norm | None = None,
        use_relu: bool = False,
        extra_from_c5: bool = False,
    ) -> None:
        super().__init__()
        # The published checkpoints count stages from 1 (C2), so C3 to C5 have the numbers 2 to 4.
        for number, channels in enumerate(in_channels, start=2):
            self.add_module(f"fpn_inner{number}", _conv_block(channels, out_channels, 1, norm, use_relu))
            self.add_module(f"fpn_layer{number}", _conv_block(out_channels, out_channels, 3, norm, use_relu))
        self.numbers = range(2, 2 + len(in_channels))
        self.extra_from_c5 = extra_from_c5
        self.top_blocks = TopBlocks(in_channels[-1] if extra_from_c5 else out_channels, out_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map C3, C4, C5 to P3 ... P7, each (N, out_channels, H, W)."""
        laterals = [getattr(self, f"fpn_inner{n}")(f) for n, f in zip(self.numbers, features, strict=True)]
        merged = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            top_down = F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest")
            merged.insert(0, lateral + top_down)
        levels = [getattr(self, f"fpn_layer{n}")(m) for n, m in zip(self.numbers, merged, strict=True)]
        return levels + self.top_blocks(features[-1] if self.extra_from_c5 else levels[-1])


def _conv_block(
    in_channels: int, out_channels: int, kernel_size: int, norm: Norm | None, use_relu: bool
) -> nn.Module:
    """Build convolution, norm and ReLU; a bare convolution keeps the published, unnested key names."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers = [conv, *([norm(out_channels)] if norm else []), *([nn.ReLU()] if use_relu else [])]
    return nn.Sequential(*layers) if len(layers) > 1 else conv
