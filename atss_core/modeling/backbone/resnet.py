"""ResNet (arXiv 1512.03385) and ResNeXt (arXiv 1611.05431) backbones.

Attribute names are the state-dict keys of the published checkpoints; modules are created in the order in
which those files list them. Norms keep their input and not their output for the backward pass, so what
follows them works in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from atss_core.layers import DeformConv2d

# Number of channels -> normalisation layer.
Norm = Callable[[int], nn.Module]

# Blocks in layer1 to layer4.
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC_DEPTHS = (18, 34)


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    layer = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
    )
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return layer


def _deform_conv(in_channels: int, out_channels: int, **options: int) -> DeformConv2d:
    """Build a deformable 3x3 convolution initialised like the convolution it replaces."""
    layer = DeformConv2d(in_channels, out_channels, **options)  # type: ignore[arg-type]
    nn.init.kaiming_uniform_(layer.conv.weight, a=1)
    return layer


def _downsample(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Module:
    """Build the projection of a residual whose shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), norm(out_channels))


class Stem(nn.Module):
    """7x7 convolution and max pooling to stride 4."""

    def __init__(self, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = _conv(3, out_channels, 7, stride=2)
        self.bn1 = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to (N, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(F.relu_(self.bn1(self.conv1(x))), kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a residual, of R-50 and deeper.

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 convolution.
        out_channels: channels of the output.
        stride: of the block, 1 or 2.
        norm: builds a normalisation layer.
        conv3x3: builds the 3x3 convolution from input channels, output channels and stride.
        stride_in_1x1: stride in the first 1x1 convolution if true, else in the 3x3.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        stride: int,
        norm: Norm,
        conv3x3: Callable[..., nn.Module],
        stride_in_1x1: bool,
    ) -> None:
        super().__init__()
        self.downsample = _downsample(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, width, 1, stride_1x1)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, stride=stride_3x3)
        self.bn2 = norm(width)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        residual = self.downsample(x)
        out = F.relu_(self.bn1(self.conv1(x)))
        out = F.relu_(self.bn2(self.conv2(out)))
        return F.relu_(self.bn3(self.conv3(out)).add_(residual))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a residual, of R-18 and R-34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        self.downsample = _downsample(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, stride)
        self.bn1 = norm(out_channels)
        self.conv2 = _conv(out_channels, out_channels, 3)
        self.bn2 = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        residual = self.downsample(x)
        out = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(out)).add_(residual))


class ResNet(nn.Module):
    """A stem and four stages, of which the last three are the output.

    Args:
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        norm: builds a normalisation layer.
        stem_norm: the same for the stem, ``norm`` if None.
        stem_channels: output channels of the stem.
        out_channels: output channels of layer1 with bottlenecks; each later stage doubles them. Basic blocks
            start at ``width_per_group`` instead.
        groups: groups of the 3x3 convolutions.
        width_per_group: channels per group in layer1.
        stride_in_1x1: see ``Bottleneck``.
        frozen_stages: how many of stem, layer1, ... keep their weights and statistics.
        deformable: which of layer1 to layer4 have deformable 3x3 convolutions.
        modulated: DCNv2 if true, DCNv1 if false.
        offset_groups: groups of the deformable offsets.

    Attributes:
        out_channels: channels of the three outputs C3, C4, C5 at strides 8, 16, 32.

    Raises:
        ValueError: for an unknown depth, or deformable, grouped basic blocks.
    """

    def __init__(
        self,
        depth: int,
        *,
        norm: Norm,
        stem_norm: Norm | None = None,
        stem_channels: int = 64,
        out_channels: int = 256,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = True,
        frozen_stages: int = 2,
        deformable: Sequence[bool] = (False, False, False, False),
        modulated: bool = True,
        offset_groups: int = 1,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth: expected one of {', '.join(map(str, DEPTHS))}, got {depth}")
        is_basic = depth in BASIC_DEPTHS
        if is_basic and (groups > 1 or any(deformable)):
            raise ValueError(
                f"R-{depth}: expected no groups and no deformable stages in its basic blocks, "
                f"got {groups} groups and deformable {tuple(deformable)}"
            )
        if not 0 <= frozen_stages <= 5:
            raise ValueError(f"frozen_stages: expected 0 to 5, got {frozen_stages}")
        usual = partial(_conv, kernel_size=3, groups=groups)
        deform = partial(_deform_conv, groups=groups, offset_groups=offset_groups, modulated=modulated)
        self.stem = Stem(stem_channels, stem_norm or norm)
        in_channels, stage_channels = stem_channels, []
        for stage, num_blocks in enumerate(DEPTHS[depth]):
            width = groups * width_per_group * 2**stage
            channels = width if is_basic else out_channels * 2**stage
            blocks: list[nn.Module] = []
            for i in range(num_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                if is_basic:
                    blocks.append(BasicBlock(in_channels, channels, stride=stride, norm=norm))
                else:
                    blocks.append(
                        Bottleneck(
                            in_channels,
                            width,
                            channels,
                            stride=stride,
                            norm=norm,
                            conv3x3=deform if deformable[stage] else usual,
                            stride_in_1x1=stride_in_1x1,
                        )
                    )
                in_channels = channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            stage_channels.append(channels)
        self.out_channels = tuple(stage_channels[1:])
        self.frozen_stages = frozen_stages
        for module in self._stages()[:frozen_stages]:
            module.requires_grad_(False)

    def _stages(self) -> list[nn.Module]:
        return [self.stem, self.layer1, self.layer2, self.layer3, self.layer4]  # type: ignore[list-item]

    def train(self, mode: bool = True) -> ResNet:
        """Switch the mode; frozen stages stay in evaluation mode, so that their statistics do not move."""
        super().train(mode)
        for stage in self._stages()[: self.frozen_stages]:
            stage.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to C3, C4, C5, each (N, out_channels[i], H / stride, W / stride)."""
        stages = self._stages()
        x = stages[1](stages[0](images))
        outputs = []
        for stage in stages[2:]:
            x = stage(x)
            outputs.append(x)
        return outputs
