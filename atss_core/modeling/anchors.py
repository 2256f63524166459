"""Anchor boxes on the grids of the feature levels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atss_core.structures import boxes as box_ops


@dataclass(frozen=True)
class Anchors:
    """Anchors of one padded image size, ordered by level, row, column, then anchor of the location.

    Row r, column c of a level is centred at ``((c + 0.5) * stride, (r + 0.5) * stride)``.

    Attributes:
        boxes: shape (K, 4).
        grid_sizes: (height, width) of each level in cells.
        strides: pixels per cell of each level.
        num_anchors: anchors per location (A).
    """

    boxes: Tensor
    grid_sizes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    num_anchors: int

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def counts(self) -> list[int]:
        """Number of anchors on each level."""
        return [height * width * self.num_anchors for height, width in self.grid_sizes]


class CellAnchors(nn.Module):
    """Anchors of the first cell of each level, as buffers with the published names ``0``, ``1``, ..."""

    def __init__(self, cell_anchors: Sequence[Tensor]) -> None:
        super().__init__()
        for level, boxes in enumerate(cell_anchors):
            self.register_buffer(str(level), boxes)

    def __iter__(self) -> Iterator[Tensor]:
        return self.buffers()


class AnchorGenerator(nn.Module):
    """Lay anchors over feature grids.

    Args:
        sizes: anchor side in pixels on each level, or several sides, before octave scales.
        strides: pixels per cell of each level.
        aspect_ratios: height / width.
        scales_per_octave: scales n of each size; scale i has side ``size * octave ** (i / n)``.
        octave: factor between the scales of a whole octave.

    Raises:
        ValueError: if sizes and strides differ in number, levels in their number of sizes, or a number is not
            positive.
    """

    def __init__(
        self,
        sizes: Sequence[float | Sequence[float]],
        strides: Sequence[int],
        aspect_ratios: Sequence[float] = (1.0,),
        scales_per_octave: int = 1,
        octave: float = 2.0,
    ) -> None:
        super().__init__()
        if len(sizes) != len(strides):
            raise ValueError(
                f"expected one size per stride, got {len(sizes)} sizes and {len(strides)} strides"
            )
        per_level = [tuple(s) if isinstance(s, Sequence) else (s,) for s in sizes]
        if len({len(level) for level in per_level}) > 1:
            raise ValueError(f"expected the same number of sizes on every level, got {tuple(sizes)}")
        if min(*sum(per_level, ()), *strides, *aspect_ratios, scales_per_octave, octave) <= 0:
            raise ValueError("expected positive sizes, strides, aspect ratios, scales and octave")
        scales = [octave ** (i / scales_per_octave) for i in range(scales_per_octave)]
        self.strides = tuple(strides)
        self.num_anchors = len(aspect_ratios) * len(scales) * len(per_level[0])
        self.cell_anchors = CellAnchors(
            [
                _cell_anchors(
                    stride, aspect_ratios, [side * scale / stride for side in level for scale in scales]
                )
                for level, stride in zip(per_level, strides, strict=True)
            ]
        )

    def forward(self, grid_sizes: Sequence[tuple[int, int]]) -> Anchors:
        """Return the anchors of grids of the given (height, width) in cells.

        Raises:
            ValueError: if the number of grids is not the number of levels.
        """
        if len(grid_sizes) != len(self.strides):
            raise ValueError(f"expected {len(self.strides)} grid sizes, one per level, got {len(grid_sizes)}")
        boxes = []
        for (height, width), stride, cell in zip(grid_sizes, self.strides, self.cell_anchors, strict=True):
            rows, columns = (
                torch.arange(n, device=cell.device, dtype=torch.float32) * stride for n in (height, width)
            )
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).flatten(0, 1)
            boxes.append((shifts[:, None] + cell).flatten(0, 1))
        return Anchors(torch.cat(boxes), tuple(grid_sizes), self.strides, self.num_anchors)

    def for_image(self, image_size: tuple[int, int]) -> Anchors:
        """Return the anchors of a padded image of (height, width) pixels; partial cells count."""
        return self([(-(-image_size[0] // s), -(-image_size[1] // s)) for s in self.strides])


def _cell_anchors(stride: int, aspect_ratios: Sequence[float], scales: Sequence[float]) -> Tensor:
    """Return the anchors (A, 4) of the first cell, by ratio, then scale; a scale is side / stride.

    Sides are rounded half to even before scaling, as the published anchors are.
    """
    sides = []
    for ratio in aspect_ratios:
        width = round(math.sqrt(stride**2 / ratio))
        height = round(width * ratio)
        sides += [(width * scale, height * scale) for scale in scales]
    widths, heights = torch.tensor(sides, dtype=torch.float64).unbind(1)
    center = torch.full((len(sides), 2), stride / 2, dtype=torch.float64)
    return box_ops.around(center, widths, heights).float()
