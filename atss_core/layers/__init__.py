"""Operations and small layers, one file each."""

from atss_core.layers.deform_conv import DeformConv2d
from atss_core.layers.focal_loss import sigmoid_focal_loss
from atss_core.layers.nms import batched_nms, nms
from atss_core.layers.norm import FrozenBatchNorm2d, group_norm
from atss_core.layers.scale import Scale

__all__ = [
    "DeformConv2d",
    "FrozenBatchNorm2d",
    "Scale",
    "batched_nms",
    "group_norm",
    "nms",
    "sigmoid_focal_loss",
]
