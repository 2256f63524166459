"""Non-maximum suppression.

All decisions are in float32. Boxes of equal score are taken in their order. A box with a coordinate that is
NaN or infinite, or without an area, neither suppresses nor is suppressed; a score that is NaN counts as the
highest. On CUDA, M boxes of an image take M * M / 8 bytes for a moment; on the CPU memory grows with M.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import ops

from atss_core.layers.checks import check_boxes
from atss_core.layers.extension import COMPILED_DEVICES, is_compiled
from atss_core.structures.boxes import to_exclusive


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the boxes that no better box overlaps by more than a threshold.

    Args:
        boxes: inclusive (x1, y1, x2, y2) pixels of any floating type, shape (K, 4).
        scores: shape (K,).
        iou_threshold: a box goes if its IoU with a kept, better box is strictly above this.

    Returns:
        Indices of the kept boxes by falling score, int64.

    Raises:
        ValueError: if the shapes or types do not fit, or the threshold is negative.
    """
    boxes = to_exclusive(boxes.float())
    if is_compiled(boxes.device):
        return torch.ops.atss.nms(boxes, scores, iou_threshold)
    check_boxes(boxes, scores, None, iou_threshold)
    return ops.nms(boxes, scores.float(), _float32_steps(iou_threshold)[0])


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Run NMS within each class.

    Args:
        boxes: inclusive (x1, y1, x2, y2) pixels of any floating type, shape (K, 4).
        scores: shape (K,).
        labels: class of each box, any integers, shape (K,).
        iou_threshold: see ``nms``.

    Returns:
        Indices of the kept boxes by falling score, int64.

    Raises:
        ValueError: see ``nms``.
    """
    boxes = to_exclusive(boxes.float())
    if is_compiled(boxes.device):
        return torch.ops.atss.batched_nms(boxes, scores, labels, iou_threshold)
    check_boxes(boxes, scores, labels, iou_threshold)
    return _batched_nms_by_offsets(boxes, scores, labels, iou_threshold)


def batched_nms_padded(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, max_detections: int = 0
) -> tuple[Tensor, Tensor]:
    """Run NMS within each class of each image of a batch, without waiting for a CUDA device.

    The sizes of the results do not depend on the data, so the call can be captured in a CUDA graph.

    Args:
        boxes: inclusive (x1, y1, x2, y2) pixels of any floating type, shape (N, M, 4).
        scores: shape (N, M); where negative (or NaN), there is no box but padding.
        labels: class of each box, any integers, shape (N, M).
        iou_threshold: see ``nms``.
        max_detections: boxes to keep an image, 0 for all; those that tie with the last one stay as well.

    Returns:
        Indices of the kept boxes of each image by falling score, int64, shape (N, M), -1 behind the last one;
        and how many there are, int64, shape (N,).

    Raises:
        ValueError: see ``nms``.
    """
    boxes = to_exclusive(boxes.float())
    if is_compiled(boxes.device):
        return torch.ops.atss.batched_nms_padded(boxes, scores, labels, iou_threshold, max_detections)
    check_boxes(boxes, scores, labels, iou_threshold, dim=3)
    keep = torch.full(scores.shape, -1, dtype=torch.int64, device=scores.device)
    counts = []
    for image, image_scores in enumerate(scores.float()):
        candidates = (image_scores >= 0).nonzero().squeeze(1)
        kept = candidates[
            _batched_nms_by_offsets(
                boxes[image, candidates], image_scores[candidates], labels[image, candidates], iou_threshold
            )
        ]
        if 0 < max_detections < len(kept):
            kept = kept[image_scores[kept] >= image_scores[kept[max_detections - 1]]]
        keep[image, : len(kept)] = kept
        counts.append(len(kept))
    return keep, torch.tensor(counts, dtype=torch.int64, device=scores.device)


def batched_nms_mask(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Run NMS within each class of each image in a form that ``torch.export`` can trace, without loops.

    It decides as ``batched_nms_padded`` does but for IoUs within float32 rounding of the threshold.

    Args:
        boxes: inclusive (x1, y1, x2, y2) pixels of any floating type, shape (N, M, 4), M at least 1.
        scores: shape (N, M); where negative, there is no box but padding.
        labels: class of each box, 0 or above, int64, shape (N, M).
        iou_threshold: see ``nms``.

    Returns:
        Which boxes are kept, bool, shape (N, M).
    """
    images = torch.arange(scores.shape[0], device=scores.device)[:, None]
    apart = _move_apart(to_exclusive(boxes.float()).double(), images * (labels.max() + 1) + labels)
    candidates = (scores >= 0).flatten().nonzero().squeeze(1)
    keep = ops.nms(
        apart.flatten(0, 1)[candidates],
        scores.flatten()[candidates].double(),
        _float32_steps(iou_threshold)[1],
    )
    mask = torch.zeros_like(scores, dtype=torch.bool).flatten()
    return mask.index_fill(0, candidates[keep], True).view_as(scores)


def _float32_steps(threshold: float) -> tuple[float, float]:
    """Return the threshold in float32, and the middle between that and the next number of float32."""
    exact = torch.tensor(threshold, dtype=torch.float32)
    following = torch.nextafter(exact, torch.tensor(torch.inf))
    return exact.item(), (exact.double() + following.double()).item() / 2


def _batched_nms_by_offsets(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Move classes apart so that one call of torchvision serves all; boxes are exclusive here.

    In float32 that shift would cost the boxes up to 1/64 px and so flip decisions. In float64 only an IoU
    within float32 rounding of the threshold may be judged otherwise than by the compiled operator. MPS has
    no float64.
    """
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    exact = boxes.to("cpu" if boxes.device.type == "mps" else boxes.device, torch.float64)
    exact = _move_apart(exact, labels.to(exact.device).unique(return_inverse=True)[1])
    # Above the middle, an IoU rounds to a float32 above the threshold.
    keep = ops.nms(exact, scores.to(exact), _float32_steps(iou_threshold)[1])
    return keep.to(boxes.device)


def _move_apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Shift float64 boxes (..., 4) so far that those of different groups (...), small numbers, never meet."""
    finite = torch.where(boxes.isfinite(), boxes, 0.0)
    span = finite.max() - finite.min()
    return boxes + (groups * (span + 1))[..., None]


if COMPILED_DEVICES:

    @torch.library.register_fake("atss::nms")
    def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)

    @torch.library.register_fake("atss::batched_nms")
    def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)

    @torch.library.register_fake("atss::batched_nms_padded")
    def _(
        boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, max_detections: int
    ) -> tuple[Tensor, Tensor]:
        keep = torch.empty(scores.shape, dtype=torch.int64, device=scores.device)
        return keep, keep.new_empty(scores.shape[0])
