"""Boxes of one image with what is known about them."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TypeVar

import torch
from torch import Tensor

from atss_core.structures import boxes as box_ops

Self = TypeVar("Self", bound="BoxList")


class BoxList:
    """Boxes of one image with their labels and, for detections, scores.

    Args:
        boxes: inclusive (x1, y1, x2, y2) pixels, shape (G, 4), float.
        image_size: (height, width) in pixels of the image the boxes belong to.
        labels: int64 in 1..C, shape (G,).
        scores: in [0, 1], shape (G,).

    Raises:
        ValueError: if a shape does not fit.
    """

    def __init__(
        self,
        boxes: Tensor,
        image_size: tuple[int, int],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> None:
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes must have shape (G, 4), got {tuple(boxes.shape)}")
        for name, field in (("labels", labels), ("scores", scores)):
            if field is not None and field.shape != boxes.shape[:1]:
                raise ValueError(f"{name} must have shape ({len(boxes)},), got {tuple(field.shape)}")
        self.boxes = boxes
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.labels = labels
        self.scores = scores

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        height, width = self.image_size
        fields = [name for name in ("labels", "scores") if getattr(self, name) is not None]
        return f"BoxList({len(self)} boxes, image {width}x{height}, with {', '.join(fields) or 'no fields'})"

    def __getitem__(self: Self, index: Tensor | slice | int) -> Self:
        """Select boxes by mask, indices or slice; a number selects a list of one box."""
        selection = [index] if isinstance(index, int) else index
        return self._map(lambda tensor: tensor[selection])

    def to(self: Self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Copy all tensors to ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: Self) -> Self:
        """Copy all tensors to page-locked memory, for the data loader."""
        return self._map(Tensor.pin_memory)

    def resize(self: Self, image_size: tuple[int, int]) -> Self:
        """Scale the boxes to an image of another (height, width), each axis by its own float ratio."""
        ratio_y, ratio_x = (new / old for new, old in zip(image_size, self.image_size, strict=True))
        boxes = box_ops.at_least_float32(self.boxes)
        scaled = boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])
        return self._replace(scaled, image_size, self.labels, self.scores)

    def flip_horizontal(self: Self) -> Self:
        """Mirror the boxes left to right."""
        flipped = box_ops.flip_horizontal(self.boxes, self.image_size[1])
        return self._replace(flipped, self.image_size, self.labels, self.scores)

    def clip(self: Self) -> Self:
        """Clip the boxes to the image."""
        clipped = box_ops.clip(self.boxes, self.image_size)
        return self._replace(clipped, self.image_size, self.labels, self.scores)

    def drop_not_finite(self: Self) -> Self:
        """Drop boxes that have a coordinate or a score that is NaN or infinite."""
        values = self.boxes if self.scores is None else torch.cat([self.boxes, self.scores[:, None]], dim=1)
        return self[values.isfinite().all(dim=1)]

    def drop_empty(self: Self) -> Self:
        """Drop boxes without x2 > x1 and y2 > y1, as the published training does."""
        return self[(self.boxes[:, 2:] > self.boxes[:, :2]).all(dim=1)]

    def _map(self: Self, function: Callable[[Tensor], Tensor]) -> Self:
        labels, scores = (None if t is None else function(t) for t in (self.labels, self.scores))
        return self._replace(function(self.boxes), self.image_size, labels, scores)

    def _replace(
        self: Self, boxes: Tensor, image_size: tuple[int, int], labels: Tensor | None, scores: Tensor | None
    ) -> Self:
        """Return a list of the same kind with other boxes; what a subclass knows besides goes along."""
        changed = copy(self)
        BoxList.__init__(changed, boxes, image_size, labels, scores)
        return changed
