"""Class-wise NMS as one node of a traced graph, and what it becomes in ONNX.

ONNX has an NMS of its own that knows images and classes, so boxes need not be moved apart as torchvision's
operator wants it, and all stays in float32. Scores go into it as one row a class, which holds the scores of
that class alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atss_core.layers import batched_nms_mask
from atss_core.structures import boxes as box_ops
from atss_core.utils.extras import require

OPSET = 21
_INT32 = 6  # onnx.TensorProto.INT32


@torch.library.custom_op("atss_export::nms_mask", mutates_args=())
def _nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, num_classes: int
) -> Tensor:
    """Stand for ``batched_nms_mask`` of exclusive boxes (N, M, 4) until it is translated."""
    return batched_nms_mask(box_ops.to_inclusive(boxes), scores, labels, iou_threshold)


@_nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, num_classes: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


class OnnxNms:
    """Suppress with the node that becomes ONNX's operator.

    Args:
        num_classes: C; labels are 1..C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
        """Return which boxes are kept, as ``batched_nms_mask`` does."""
        return _nms_mask(box_ops.to_exclusive(boxes), scores, labels, iou_threshold, self.num_classes)


def translation_table() -> dict[Any, Any]:
    """Return what ``torch.onnx.export`` needs to translate the node; needs onnxscript."""
    op = getattr(require("onnxscript"), f"opset{OPSET}")

    def nms_mask(boxes: Any, scores: Any, labels: Any, iou_threshold: float, num_classes: int) -> Any:
        one = op.Constant(value_ints=[1])
        classes = op.Unsqueeze(op.Constant(value_ints=list(range(1, num_classes + 1))), one)  # (C, 1)
        is_own = op.Equal(op.Unsqueeze(labels, one), classes)  # (N, C, M)
        nothing = op.Constant(value_float=-1.0)
        kept = op.NonMaxSuppression(  # rows of image, class, box
            boxes,
            op.Where(is_own, op.Unsqueeze(scores, one), nothing),
            op.Shape(scores, start=1, end=2),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[-0.5]),
        )
        places = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
        # In int32, which all runtimes can scatter.
        zero = op.Cast(op.Constant(value_ints=[0]), to=_INT32)
        marks = op.Expand(op.Cast(one, to=_INT32), op.Shape(places, start=0, end=1))
        return op.Greater(op.ScatterND(op.Expand(zero, op.Shape(scores)), places, marks), zero)

    return {torch.ops.atss_export.nms_mask.default: nms_mask}
