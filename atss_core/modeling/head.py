"""The dense head, shared by all levels (paper, section 3; the towers of FCOS, arXiv 1904.01355)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from atss_core.layers import DeformConv2d, Scale


@dataclass(frozen=True)
class HeadOutputs:
    """Predictions of each level; channels are ordered by anchor, then value.

    Attributes:
        cls_logits: (N, A * C, H, W) per level.
        encoded_boxes: (N, A * 4, H, W) per level, for the box coder.
        centerness: logits, (N, A, H, W) per level; None if the head has no centerness.
    """

    cls_logits: list[Tensor]
    encoded_boxes: list[Tensor]
    centerness: list[Tensor] | None

    @property
    def grid_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each level in cells."""
        return [(level.shape[2], level.shape[3]) for level in self.cls_logits]


def flatten_level(level: Tensor, num_values: int) -> Tensor:
    """Bring (N, A * num_values, H, W) into the order of the anchors: (N, H * W * A, num_values)."""
    num_images, _, height, width = level.shape
    split = level.view(num_images, -1, num_values, height, width)
    return split.permute(0, 3, 4, 1, 2).reshape(num_images, -1, num_values)


class AtssHead(nn.Module):
    """Two towers of convolutions and three predictions; the centerness comes from the box tower.

    Args:
        in_channels: channels of the features.
        num_classes: object classes without background (C).
        num_levels: feature levels (L).
        num_anchors: anchors per location (A).
        num_convs: convolutions in each tower.
        deformable: make the last convolution of each tower a DCNv2.
        prior_prob: class probability predicted everywhere at the start (arXiv 1708.02002, section 4.1).
        use_relu: pass the encoded boxes through a ReLU; for distances, which cannot be negative.
        norm: builds a normalisation layer of the towers for a number of channels; None for none.
        use_centerness: predict the centerness.
        use_scales: multiply the encoded boxes of each level by a ``Scale`` of its own.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        norm: Callable[[int], nn.Module] | None,
        num_levels: int = 5,
        num_anchors: int = 1,
        num_convs: int = 4,
        deformable: bool = False,
        prior_prob: float = 0.01,
        use_relu: bool = False,
        use_centerness: bool = True,
        use_scales: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.use_relu = use_relu
        self.cls_tower = _tower(in_channels, num_convs, deformable, norm)
        self.bbox_tower = _tower(in_channels, num_convs, deformable, norm)
        self.cls_logits = _conv3x3(in_channels, num_anchors * num_classes)
        self.bbox_pred = _conv3x3(in_channels, num_anchors * 4)
        self.centerness = _conv3x3(in_channels, num_anchors) if use_centerness else None
        self.scales = nn.ModuleList([Scale(1.0) if use_scales else nn.Identity() for _ in range(num_levels)])
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Predict from the levels, each (N, in_channels, H, W)."""
        outputs = HeadOutputs([], [], None if self.centerness is None else [])
        for feature, scale in zip(features, self.scales, strict=True):
            box_features = self.bbox_tower(feature)
            encoded = scale(self.bbox_pred(box_features))
            outputs.cls_logits.append(self.cls_logits(self.cls_tower(feature)))
            outputs.encoded_boxes.append(F.relu(encoded) if self.use_relu else encoded)
            if self.centerness is not None and outputs.centerness is not None:
                outputs.centerness.append(self.centerness(box_features))
        return outputs


def _tower(
    channels: int, num_convs: int, deformable: bool, norm: Callable[[int], nn.Module] | None
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_convs):
        is_deformable = deformable and i == num_convs - 1
        layers.append(_deform_conv3x3(channels) if is_deformable else _conv3x3(channels, channels))
        layers += [nn.ReLU()] if norm is None else [norm(channels), nn.ReLU()]
    return nn.Sequential(*layers)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)  # the small weights that the focal loss starts from
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _deform_conv3x3(channels: int) -> DeformConv2d:
    layer = DeformConv2d(channels, channels, modulated=True, bias=True)
    nn.init.normal_(layer.conv.weight, std=0.01)
    nn.init.zeros_(layer.conv.bias)  # type: ignore[arg-type]
    return layer
