"""ResNet (arXiv 1512.03385) and ResNeXt (arXiv 1611.05431) bodies.

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

Norm = Callable[[int], nn.Module]

# Blocks in layer1 to layer4.
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC_DEPTHS = (18, 34)


def conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Build a convolution without bias that keeps the size at stride 1."""
    layer = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return layer


def downsample(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    """Build the projection of a residual whose shape changes, None where it does not."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride=stride), norm(out_channels))


class Stem(nn.Module):
    """7x7 convolution and max pooling to stride 4."""

    def __init__(self, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = conv(3, out_channels, 7, stride=2)
        self.bn1 = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to (N, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(F.relu_(self.bn1(self.conv1(x))), kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a residual.

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 convolution.
        out_channels: channels of the output.
        stride: of the block, 1 or 2.
        groups: of the 3x3 convolution.
        stride_in_1x1: stride in the first 1x1 convolution if true, else in the 3x3.
        norm: builds a normalisation layer for a number of channels.
        make_deform_conv: builds the 3x3 convolution if it is deformable.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        stride: int,
        norm: Norm,
        groups: int = 1,
        stride_in_1x1: bool = True,
        make_deform_conv: Callable[..., DeformConv2d] | None = None,
    ) -> None:
        super().__init__()
        self.downsample = downsample(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = conv(in_channels, width, 1, stride=stride_1x1)
        self.bn1 = norm(width)
        if make_deform_conv:
            self.conv2: nn.Module = make_deform_conv(width, width, stride=stride_3x3, groups=groups)
        else:
            self.conv2 = conv(width, width, 3, stride=stride_3x3, groups=groups)
        self.bn2 = norm(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        residual = x if self.downsample is None else self.downsample(x)
        out = F.relu_(self.bn1(self.conv1(x)))
        out = F.relu_(self.bn2(self.conv2(out)))
        return F.relu_(self.bn3(self.conv3(out)).add_(residual))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a residual, for the shallow bodies."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        self.downsample = downsample(in_channels, out_channels, stride, norm)
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride)
        self.bn1 = norm(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.bn2 = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        residual = x if self.downsample is None else self.downsample(x)
        out = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(out)).add_(residual))


class ResNet(nn.Module):
    """The body: a stem and four stages, of which the last three are the output.

    Args:
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        norm: builds a normalisation layer for a number of channels.
        stem_norm: the same for the stem, ``norm`` if None.
        stem_channels: output channels of the stem.
        out_channels: output channels of layer1 of a bottleneck backbone; each later stage doubles them.
            Basic blocks start at ``width_per_group`` instead.
        groups: groups of the 3x3 convolutions.
        width_per_group: channels a group in layer1.
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
            raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
        if depth in BASIC_DEPTHS and (groups > 1 or any(deformable)):
            raise ValueError(f"R-{depth} has basic blocks: no groups (got {groups}), no deformable stages")
        if not 0 <= frozen_stages <= 5:
            raise ValueError(f"FREEZE_CONV_BODY_AT must be 0 to 5, got {frozen_stages}")
        make_deform_conv = partial(deform_conv, offset_groups=offset_groups, modulated=modulated)

        def block(in_channels: int, stage: int, stride: int) -> nn.Module:
            width = groups * width_per_group * 2**stage
            if depth in BASIC_DEPTHS:
                return BasicBlock(in_channels, width, stride=stride, norm=norm)
            return Bottleneck(
                in_channels,
                width,
                out_channels * 2**stage,
                stride=stride,
                norm=norm,
                groups=groups,
                stride_in_1x1=stride_in_1x1,
                make_deform_conv=make_deform_conv if deformable[stage] else None,
            )

        self.stem = Stem(stem_channels, stem_norm or norm)
        first = width_per_group if depth in BASIC_DEPTHS else out_channels
        stage_channels = [first * 2**stage for stage in range(4)]
        in_channels = stem_channels
        for stage, (num_blocks, channels) in enumerate(zip(DEPTHS[depth], stage_channels, strict=True)):
            blocks = [block(in_channels, stage, stride=1 if stage == 0 else 2)]
            blocks += [block(channels, stage, stride=1) for _ in range(num_blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            in_channels = channels
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


def deform_conv(in_channels: int, out_channels: int, **options: int) -> DeformConv2d:
    """Build a deformable convolution initialised like the convolution it replaces."""
    layer = DeformConv2d(in_channels, out_channels, **options)  # type: ignore[arg-type]
    nn.init.kaiming_uniform_(layer.conv.weight, a=1)
    return layer
