"""Closest anchors to points, found on the grids of the levels without looking at all anchors."""

from __future__ import annotations

import torch
from torch import Tensor

from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners.common import sort_key


def closest_anchors(anchors: Anchors, points: Tensor, topk: int) -> Tensor:
    """Find the anchors of the ``topk`` closest locations of each level.

    Args:
        anchors: K anchors on L grids.
        points: (x, y) pixels, shape (..., 2).
        topk: locations per level; a smaller level gives all it has.

    Returns:
        Anchor indices, int64, shape (..., M) with M = A * sum over levels of min(topk, H * W).
    """
    indices, start = [], 0
    in_location = torch.arange(anchors.num_anchors, device=points.device)
    for grid_size, stride, count in zip(anchors.grid_sizes, anchors.strides, anchors.counts, strict=True):
        cells = closest_cells(points / stride - 0.5, grid_size, topk)
        indices.append((cells[..., None] * anchors.num_anchors + in_location).flatten(-2) + start)
        start += count
    return torch.cat(indices, dim=-1)


def closest_cells(points: Tensor, grid_size: tuple[int, int], topk: int) -> Tensor:
    """Find the closest cells of a grid.

    The cell in the i-th closest column and the j-th closest row (counted from 1) has i * j - 1 cells that are
    no farther in both directions. So the ``topk`` closest all have i * j <= topk, which leaves about topk *
    ln(topk) cells to sort, whatever the size of the grid.

    Args:
        points: (x, y) in cells, with (0, 0) at the centre of the first cell; shape (..., 2).
        grid_size: (height, width) in cells.
        topk: number of cells.

    Returns:
        Cell indices ``row * width + column`` by rising distance, then index; shape (..., min(topk, H * W)).
    """
    height, width = grid_size
    columns, dx = _closest_on_axis(points[..., 0], width, topk)
    rows, dy = _closest_on_axis(points[..., 1], height, topk)
    pairs = [(i, j) for i in range(columns.shape[-1]) for j in range(min(rows.shape[-1], topk // (i + 1)))]
    i, j = torch.tensor(pairs).T.to(points.device, non_blocking=True)
    order = sort_key(dx[..., i] + dy[..., j], rows[..., j] * width + columns[..., i])
    return order.topk(min(topk, height * width), largest=False, sorted=True).values & 0xFFFFFFFF


def _closest_on_axis(positions: Tensor, length: int, topk: int) -> tuple[Tensor, Tensor]:
    """Return the ``topk`` integers in [0, length) closest to each position, and their squared distances."""
    # Half the window on each side, one cell more for the rounding of ``floor``; shifted inward at the border.
    window = min(topk + 2, length)
    first = (positions.floor() - topk // 2).clamp(0, length - window).long()
    cells = first[..., None] + torch.arange(window, device=positions.device)
    order = sort_key((cells - positions[..., None]).square(), cells)
    cells = order.topk(min(topk, length), largest=False, sorted=True).values & 0xFFFFFFFF
    return cells, (cells - positions[..., None]).square()
