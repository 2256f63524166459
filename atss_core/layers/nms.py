"""Non-maximum suppression.

All decisions are made in float32. Boxes of equal score are processed in input order. A box with a NaN or
infinite coordinate, or without an area, neither suppresses nor is suppressed; a NaN score counts as the
highest. On CUDA, M boxes of an image temporarily use M * M / 8 bytes; on the CPU memory grows with M.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import ops

from atss_core.layers.extension import COMPILED_DEVICES, is_compiled
from atss_core.structures.boxes import to_exclusive


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep each box that no kept box of a higher score overlaps by more than a threshold.

    Args:
        boxes: inclusive (x1, y1, x2, y2) in pixels, any floating type, shape (K, 4).
        scores: shape (K,).
        iou_threshold: a box is suppressed if its IoU with a kept box is strictly above this.

    Returns:
        Indices of the kept boxes by descending score, int64.

    Raises:
        ValueError: if the shapes or types do not fit, or the threshold is negative.
    """
    boxes = to_exclusive(boxes.float())
    if is_compiled(boxes.device):
        return torch.ops.atss.nms(boxes, scores, iou_threshold)
    check_boxes(boxes, scores, None, iou_threshold)
    return ops.nms(boxes, scores.float(), _float32_steps(iou_threshold)[0])


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Run ``nms`` within each class; ``labels`` (K,) holds the class of each box, any integers."""
    boxes = to_exclusive(boxes.float())
    if is_compiled(boxes.device):
        return torch.ops.atss.batched_nms(boxes, scores, labels, iou_threshold)
    check_boxes(boxes, scores, labels, iou_threshold)
    return _offset_nms(boxes, scores, labels, iou_threshold)


def batched_nms_padded(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, max_detections: int = 0
) -> tuple[Tensor, Tensor]:
    """Run NMS within each class of each image of a batch, without synchronising with a CUDA device.

    Result sizes do not depend on the data, so the call can be captured in a CUDA graph.

    Args:
        boxes: inclusive (x1, y1, x2, y2) in pixels, any floating type, shape (N, M, 4).
        scores: shape (N, M); a negative or NaN score marks padding.
        labels: class of each box, any integers, shape (N, M).
        iou_threshold: see ``nms``.
        max_detections: boxes to keep per image, 0 for all; boxes that tie with the last one are kept too.

    Returns:
        Indices of the kept boxes of each image by descending score, padded with -1, int64, shape (N, M);
        and their number, int64, shape (N,).
    """
    boxes = to_exclusive(boxes.float())
    if is_compiled(boxes.device):
        return torch.ops.atss.batched_nms_padded(boxes, scores, labels, iou_threshold, max_detections)
    check_boxes(boxes, scores, labels, iou_threshold, dim=3)
    keep = torch.full(scores.shape, -1, dtype=torch.int64, device=scores.device)
    counts = []
    for image, image_scores in enumerate(scores.float()):
        candidates = (image_scores >= 0).nonzero().squeeze(1)
        candidate_boxes, candidate_labels = boxes[image, candidates], labels[image, candidates]
        kept = _offset_nms(candidate_boxes, image_scores[candidates], candidate_labels, iou_threshold)
        kept = candidates[kept]
        if 0 < max_detections < len(kept):
            kept = kept[image_scores[kept] >= image_scores[kept[max_detections - 1]]]
        keep[image, : len(kept)] = kept
        counts.append(len(kept))
    return keep, torch.tensor(counts, dtype=torch.int64, device=scores.device)


def batched_nms_mask(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Run ``batched_nms_padded`` without loops, so that ``torch.export`` can trace it.

    Decisions may differ for IoUs within float32 rounding of the threshold. M must be at least 1 and labels
    int64 from 0 on.

    Returns:
        Which boxes are kept, bool, shape (N, M).
    """
    images = torch.arange(scores.shape[0], device=scores.device)[:, None]
    separated = _separate(to_exclusive(boxes.float()).double(), images * (labels.max() + 1) + labels)
    candidates = (scores >= 0).flatten().nonzero().squeeze(1)
    keep = ops.nms(
        separated.flatten(0, 1)[candidates],
        scores.flatten()[candidates].double(),
        _float32_steps(iou_threshold)[1],
    )
    mask = torch.zeros_like(scores, dtype=torch.bool).flatten()
    return mask.index_fill(0, candidates[keep], True).view_as(scores)


def _float32_steps(threshold: float) -> tuple[float, float]:
    """Return the threshold in float32, and the midpoint between it and the next float32 number."""
    exact = torch.tensor(threshold, dtype=torch.float32)
    following = torch.nextafter(exact, torch.tensor(torch.inf))
    return exact.item(), (exact.double() + following.double()).item() / 2


def _offset_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Run torchvision's NMS once on exclusive boxes (K, 4), with an offset per class.

    In float32 the offset would round boxes by up to 1/64 px and change decisions. In float64 only IoUs within
    float32 rounding of the threshold can be decided differently from the compiled operator.
    """
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    # MPS has no float64.
    exact = boxes.to("cpu" if boxes.device.type == "mps" else boxes.device, torch.float64)
    exact = _separate(exact, labels.to(exact.device).unique(return_inverse=True)[1])
    # An IoU above the midpoint rounds to a float32 above the threshold.
    keep = ops.nms(exact, scores.to(exact), _float32_steps(iou_threshold)[1])
    return keep.to(boxes.device)


def _separate(boxes: Tensor, groups: Tensor) -> Tensor:
    """Shift float64 boxes (..., 4) so that those of different groups (...), small integers, never overlap."""
    finite = torch.where(boxes.isfinite(), boxes, 0.0)
    span = finite.max() - finite.min()
    return boxes + (groups * (span + 1))[..., None]


def check_boxes(boxes: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, dim: int = 2) -> None:
    """Raise ValueError unless ``boxes`` (..., 4) has ``dim`` dimensions and one score and label per box."""
    if boxes.dim() != dim or boxes.shape[-1] != 4:
        expected = "(N, K, 4)" if dim == 3 else "(K, 4)"
        raise ValueError(f"boxes must be {expected}, got {list(boxes.shape)}")
    for name, values in {"scores": scores, "labels": labels}.items():
        if values is not None and values.shape != boxes.shape[:-1]:
            raise ValueError(
                f"{name} must have one value per box, {list(boxes.shape[:-1])}, got {list(values.shape)}"
            )
    if not (boxes.is_floating_point() and scores.is_floating_point()):
        raise ValueError(f"boxes and scores must be floating point, got {boxes.dtype} and {scores.dtype}")
    if labels is not None and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if not threshold >= 0:
        raise ValueError(f"the IoU threshold must be 0 or more, got {threshold}")


if COMPILED_DEVICES:

    @torch.library.register_fake("atss::nms")
    @torch.library.register_fake("atss::batched_nms")
    def _(boxes: Tensor, *others: Any) -> Tensor:
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)

    @torch.library.register_fake("atss::batched_nms_padded")
    def _(boxes: Tensor, scores: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        keep = torch.empty(scores.shape, dtype=torch.int64, device=scores.device)
        return keep, keep.new_empty(scores.shape[0])
