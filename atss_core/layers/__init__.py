"""Operators with a compiled and a fallback implementation, and small layers."""

from atss_core.layers.box_vote import box_vote
from atss_core.layers.deform_conv import DeformConv2d, deform_conv2d
from atss_core.layers.extension import ops_info, portable_operators
from atss_core.layers.focal_loss import sigmoid_focal_loss
from atss_core.layers.nms import batched_nms, batched_nms_mask, batched_nms_padded, nms
from atss_core.layers.norm import FrozenBatchNorm2d, group_norm
from atss_core.layers.scale import Scale

__all__ = [
    "DeformConv2d",
    "FrozenBatchNorm2d",
    "Scale",
    "batched_nms",
    "batched_nms_mask",
    "batched_nms_padded",
    "box_vote",
    "deform_conv2d",
    "group_norm",
    "nms",
    "ops_info",
    "portable_operators",
    "sigmoid_focal_loss",
]
