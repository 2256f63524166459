"""The pixel convention, and the only file that knows it.

A box is (x1, y1, x2, y2) in pixels and x2, y2 are INCLUSIVE: a box that covers one pixel has x1 == x2, so
its width is ``x2 - x1 + 1``. The published weights were trained with this convention. Everything here takes
boxes of shape (..., 4), any float dtype, and broadcasts over the leading dimensions. Half types give float32:
float16 has no areas above 65504, and bfloat16 no odd pixels above 256.
"""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return half types as float32, all others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def widths_heights(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the widths and heights in pixels, each of shape (...)."""
    boxes = at_least_float32(boxes)
    return boxes[..., 2] - boxes[..., 0] + 1, boxes[..., 3] - boxes[..., 1] + 1


def area(boxes: Tensor) -> Tensor:
    """Return the areas in square pixels, shape (...)."""
    widths, heights = widths_heights(boxes)
    return widths * heights


def centers(boxes: Tensor) -> Tensor:
    """Return the centres (x, y) in pixels, shape (..., 2)."""
    boxes = at_least_float32(boxes)
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes that broadcast against each other.

    For all pairs of (G, 4) and (K, 4) pass ``first[:, None]`` and ``second[None]``.

    Args:
        first: boxes, shape (..., 4).
        second: boxes, shape (..., 4), broadcastable with ``first``.

    Returns:
        The IoU in [0, 1], shape (...).
    """
    first, second = at_least_float32(first), at_least_float32(second)
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    sides = (bottom_right - top_left + 1).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    return intersection / (area(first) + area(second) - intersection)


def to_exclusive(boxes: Tensor) -> Tensor:
    """Move x2, y2 to the border of the last pixel, where widths are plain differences.

    This is the door to libraries with the other convention: ``torchvision.ops.nms`` on the result decides
    exactly as the inclusive convention does on ``boxes``.
    """
    boxes = at_least_float32(boxes)
    return torch.cat([boxes[..., :2], boxes[..., 2:] + 1], dim=-1)


def to_inclusive(boxes: Tensor) -> Tensor:
    """Undo ``to_exclusive``."""
    boxes = at_least_float32(boxes)
    return torch.cat([boxes[..., :2], boxes[..., 2:] - 1], dim=-1)


def from_xywh(boxes: Tensor) -> Tensor:
    """Convert (x, y, width, height), as COCO stores them, to inclusive (x1, y1, x2, y2)."""
    boxes = at_least_float32(boxes)
    return torch.cat([boxes[..., :2], boxes[..., :2] + (boxes[..., 2:] - 1).clamp(min=0)], dim=-1)


def to_xywh(boxes: Tensor) -> Tensor:
    """Convert inclusive (x1, y1, x2, y2) to (x, y, width, height)."""
    boxes = at_least_float32(boxes)
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2] + 1], dim=-1)


def around(centers: Tensor, widths: Tensor, heights: Tensor) -> Tensor:
    """Build boxes of the given pixel sizes around centres.

    Args:
        centers: (x, y), shape (..., 2).
        widths: pixels, shape (...).
        heights: pixels, shape (...).

    Returns:
        Boxes, shape (..., 4).
    """
    centers, widths, heights = (at_least_float32(values) for values in (centers, widths, heights))
    half = torch.stack([widths - 1, heights - 1], dim=-1) / 2
    return torch.cat([centers - half, centers + half], dim=-1)


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clip boxes to an image of size (height, width): x to [0, width - 1], y to [0, height - 1]."""
    height, width = image_size
    x1, y1, x2, y2 = at_least_float32(boxes).unbind(-1)
    return torch.stack(
        [x1.clamp(0, width - 1), y1.clamp(0, height - 1), x2.clamp(0, width - 1), y2.clamp(0, height - 1)],
        dim=-1,
    )


def flip_horizontal(boxes: Tensor, image_width: int) -> Tensor:
    """Mirror boxes left to right: x becomes ``image_width - 1 - x``."""
    x1, y1, x2, y2 = at_least_float32(boxes).unbind(-1)
    return torch.stack([image_width - 1 - x2, y1, image_width - 1 - x1, y2], dim=-1)


def distances_to_sides(points: Tensor, boxes: Tensor) -> Tensor:
    """Return (left, top, right, bottom) distances in pixels from points to the sides of boxes.

    Args:
        points: (x, y), shape (..., 2).
        boxes: shape (..., 4), leading dimensions broadcastable with those of ``points``.

    Returns:
        Distances, shape (..., 4), all positive exactly when the point is inside.
    """
    points, boxes = at_least_float32(points), at_least_float32(boxes)
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
