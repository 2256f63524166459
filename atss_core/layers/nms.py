"""Non-maximum suppression."""

import torch
from torch import Tensor
from torchvision import ops

from atss_core.structures.boxes import to_exclusive


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the boxes that no better box overlaps by more than a threshold.

    Args:
        boxes: inclusive (x1, y1, x2, y2) pixels, shape (K, 4).
        scores: shape (K,).
        iou_threshold: a box goes if its IoU with a kept, better box is strictly above this.

    Returns:
        Indices of the kept boxes by falling score, int64.
    """
    return ops.nms(to_exclusive(boxes.float()), scores.float(), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Run NMS within each class.

    Args:
        boxes: inclusive (x1, y1, x2, y2) pixels, shape (K, 4).
        scores: shape (K,).
        labels: class of each box, int64, shape (K,).
        iou_threshold: see ``nms``.

    Returns:
        Indices of the kept boxes by falling score, int64.
    """
    if boxes.numel() == 0:
        return boxes.new_zeros(0, dtype=torch.int64)
    # Classes are moved apart so that one call serves all. In float32 that shift would cost the boxes up to
    # 1/64 px and so flip decisions near the threshold; in float64 it is harmless. MPS has no float64.
    exact = to_exclusive(boxes).to("cpu" if boxes.device.type == "mps" else boxes.device, torch.float64)
    span = exact.max() - exact.min()
    offsets = labels.to(exact) * (span + 1)
    keep = ops.nms(exact + offsets[:, None], scores.to(exact), iou_threshold)
    return keep.to(boxes.device)
