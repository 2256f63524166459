"""Find the anchors nearest to points on the grids of the levels, without looking at all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from atss_core.modeling.anchors import Anchors


def nearest_anchors(anchors: Anchors, points: Tensor, topk: int) -> Tensor:
    """Find the anchors of the ``topk`` nearest places of each level.

    Args:
        anchors: K anchors on L grids.
        points: (x, y) pixels, shape (..., 2).
        topk: places a level; a level with fewer gives all it has.

    Returns:
        Anchor indices, int64, shape (..., M) with M = A * sum over levels of min(topk, H * W).
    """
    found, start = [], 0
    in_place = torch.arange(anchors.num_anchors, device=points.device)
    for grid_size, stride, count in zip(anchors.grid_sizes, anchors.strides, anchors.counts, strict=True):
        cells = nearest_cells(points / stride - 0.5, grid_size, topk)
        found.append((cells[..., None] * anchors.num_anchors + in_place).flatten(-2) + start)
        start += count
    return torch.cat(found, dim=-1)


def nearest_cells(points: Tensor, grid_size: tuple[int, int], topk: int) -> Tensor:
    """Find the nearest cells of a grid without looking at all of them.

    The cell in the i-th nearest column and the j-th nearest row (counted from 1) has i * j - 1 cells that are
    no farther in both directions. So the ``topk`` nearest all have i * j <= topk, which leaves about
    topk * ln(topk) cells to sort, whatever the size of the grid.

    Args:
        points: (x, y) in cells, with (0, 0) at the centre of the first cell; shape (..., 2).
        grid_size: (height, width) in cells.
        topk: how many to find.

    Returns:
        Cell indices ``row * width + column`` by rising distance, then index; shape (..., min(topk, H * W)).
    """
    height, width = grid_size
    columns, across = nearest_on_axis(points[..., 0], width, topk)
    rows, down = nearest_on_axis(points[..., 1], height, topk)
    pairs = [(i, j) for i in range(columns.shape[-1]) for j in range(min(rows.shape[-1], topk // (i + 1)))]
    i, j = torch.tensor(pairs).T.to(points.device, non_blocking=True)
    cells = rows[..., j] * width + columns[..., i]
    order = sort_key(across[..., i] + down[..., j], cells)
    nearest = order.topk(min(topk, height * width), largest=False, sorted=True).values
    return nearest & 0xFFFFFFFF


def nearest_on_axis(positions: Tensor, length: int, topk: int) -> tuple[Tensor, Tensor]:
    """Sort the whole numbers in [0, length) near each position by distance, then number.

    Args:
        positions: shape (...).
        length: of the axis in cells.
        topk: how many to return at most.

    Returns:
        The numbers, int64, and their squared distances, both of shape (..., min(topk, length)).
    """
    # Half the window on each side, one cell more for the rounding of ``floor``; shifted inward at the border.
    window = min(topk + 2, length)
    first = (positions.floor() - topk // 2).clamp(0, length - window).long()
    numbers = first[..., None] + torch.arange(window, device=positions.device)
    order = sort_key((numbers - positions[..., None]).square(), numbers)
    numbers = order.topk(min(topk, length), largest=False, sorted=True).values & 0xFFFFFFFF
    return numbers, (numbers - positions[..., None]).square()


def sort_key(values: Tensor, indices: Tensor) -> Tensor:
    """Pack float32 values and indices into int64 that sort by value, then index.

    The bits of a float, read as a signed integer, are ordered like the float itself if it is positive; for
    negative ones all but the sign are inverted. The index, below 2^32, is the low half of the key.
    """
    bits = (values.float() + 0.0).contiguous().view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) + indices
