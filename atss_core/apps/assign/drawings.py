"""Draw label assignment: positives on an image, the candidates of an object, and a summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw
from torch import Tensor

from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners.atss import Candidates
from atss_core.structures import BoxList
from atss_core.structures import boxes as box_ops
from atss_core.visualization.boxes import class_color
from atss_core.visualization.fonts import set_literal

# Colours of levels and sizes that are told apart with colour-blindness (Okabe and Ito).
LEVEL_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
SIZE_COLORS = {"S": "#0072B2", "M": "#E69F00", "L": "#009E73"}
RED = (214, 39, 40)
FIRST_LEVEL = 3  # P3 is the finest
TILE_SIDE = 420  # pixels of the longer side of an image
SMOOTHING = 2  # drawn so many times as large, because Pillow does not smooth lines

# States of a candidate in the order of drawing: label in the legend, marker, its area in square points.
CANDIDATE, OUTSIDE, LOST, POSITIVE = range(4)
STATES = (
    ("below the threshold", "o", 26),
    ("above it, centre outside", "X", 46),
    ("above it, matched to another object", "^", 26),
    ("positive", "o", 58),
)
MEAN_LINE: dict[str, Any] = {"color": "dimgray", "linestyle": (0, (4, 3)), "linewidth": 1.3}
THRESHOLD_LINE: dict[str, Any] = {"color": "black", "linewidth": 1.5}


def draw_positives(image: Image.Image, anchors: Anchors, target: BoxList, matched: Tensor) -> Image.Image:
    """Draw the centres of positive anchors in the colours of their objects; unmatched objects are red.

    Args:
        image: the image, of any size.
        anchors: of the network input.
        target: the objects, in pixels of the network input.
        matched: the object of each anchor, int64 (K,), negative for none.
    """
    scale = SMOOTHING * TILE_SIDE / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    canvas = Image.blend(canvas, Image.new("RGB", size, "white"), 0.45)  # so that colours show
    pen = ImageDraw.Draw(canvas)
    boxes = target.resize((canvas.height, canvas.width)).boxes.round().int().tolist()
    is_matched = torch.isin(torch.arange(len(target)), matched)
    for index in torch.argsort(~is_matched, stable=True).tolist():  # unmatched objects on top
        color, width = (class_color(index + 1), 1) if is_matched[index] else (RED, 4)
        pen.rectangle(boxes[index], outline=color, width=width * SMOOTHING)
    height, width = target.image_size
    factors = torch.tensor([canvas.width / width, canvas.height / height])
    points = box_ops.centers(anchors.boxes[matched >= 0]) * factors
    radius = 2.5 * SMOOTHING
    for (x, y), index in zip(points.tolist(), matched[matched >= 0].tolist(), strict=True):
        circle = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(circle, fill=class_color(index + 1), outline="black")
    return canvas.reduce(SMOOTHING)


class ObjectDrawing:
    """An object and its ATSS candidates, drawn on the image and beside it by IoU and level.

    Args:
        anchors: of the network input.
        target: the objects of the image, in pixels of the network input.
        atss: the candidates of all objects.
        matched: the object of each anchor, int64 (K,), negative for none.
        index: of the object.
        name: of the object, for the title.
    """

    def __init__(
        self, anchors: Anchors, target: BoxList, atss: Candidates, matched: Tensor, index: int, name: str
    ) -> None:
        chosen = atss.anchors[0, index]
        self.strides = anchors.strides
        self.image_size = target.image_size
        self.box = target.boxes[index]
        self.centers = box_ops.centers(anchors.boxes[chosen]).numpy()
        self.levels = np.searchsorted(np.cumsum(anchors.counts), chosen.numpy(), side="right")
        self.ious = atss.ious[0, index].numpy()
        self.mean, self.threshold = float(atss.mean[0, index]), float(atss.threshold[0, index])
        states = torch.full_like(chosen, CANDIDATE)
        states[atss.ious[0, index] >= atss.threshold[0, index]] = OUTSIDE
        states[atss.is_positive[0, index]] = LOST
        states[matched[chosen] == index] = POSITIVE
        self.states = states.numpy()
        size = " x ".join(f"{side:.0f}" for side in box_ops.widths_heights(self.box))
        num_positives = np.count_nonzero(self.states == POSITIVE)
        self.title = f"{name}, {size} px: {num_positives} positive of {len(chosen)} candidates"

    def draw(self, image: Image.Image) -> Image.Image:
        """Draw on an image of any size."""
        figure = _figure(8.4, 4.0)
        set_literal(figure.suptitle("", fontsize=12), self.title)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        self._plot_centers(left, image)
        self._plot_ious(right)
        handles = [
            Line2D([], [], color="dimgray", marker=marker, linestyle="", markersize=size**0.5, label=label)
            for label, marker, size in STATES
        ]
        for handle in handles[:POSITIVE]:
            handle.set_markerfacecolor("white")
        handles.append(Line2D([], [], label="mean of the IoUs", **MEAN_LINE))
        handles.append(Line2D([], [], label="threshold: mean + std", **THRESHOLD_LINE))
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        return _to_image(figure)

    def _plot_centers(self, axes: Axes, image: Image.Image) -> None:
        """Plot the object with its positives and the finest candidates; others may lie outside."""
        height, width = self.image_size
        x1, y1, x2, y2 = self.box.tolist()
        x, y = box_ops.centers(self.box).tolist()
        offsets = np.abs(self.centers - (x, y)).max(axis=1)
        reach = offsets[(self.states != CANDIDATE) | (self.levels == 0)].max(initial=0)
        half = max(0.75 * (x2 - x1), 0.75 * (y2 - y1), 1.2 * reach, 3 * self.strides[0])
        axes.imshow(image.convert("RGB"), extent=(0, width, height, 0), alpha=0.75, interpolation="bilinear")
        axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half), xticks=[], yticks=[])
        axes.set(aspect="equal", facecolor="whitesmoke")
        for color, line in (("white", 4.0), ("black", 1.8)):
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=line))
        is_seen = offsets <= half
        self._scatter(axes, self.centers, is_seen)
        if not is_seen.all():
            axes.set_xlabel(f"{np.count_nonzero(~is_seen)} candidates lie outside this section", fontsize=9)

    def _plot_ious(self, axes: Axes) -> None:
        heights = self.levels.astype(float)
        for level in range(len(self.strides)):
            # Candidates of a level lie a little above each other, so that equal IoUs can be counted.
            members = np.flatnonzero(self.levels == level)
            heights[members] += np.linspace(-0.36, 0.36, len(members)) if len(members) > 1 else 0
        axes.axvline(self.mean, **MEAN_LINE)
        axes.axvline(self.threshold, **THRESHOLD_LINE)
        self._scatter(axes, np.column_stack([self.ious, heights]), np.ones(len(heights), dtype=bool))
        names = [f"P{FIRST_LEVEL + i}\nstride {stride}" for i, stride in enumerate(self.strides)]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for i, label in enumerate(axes.get_yticklabels()):
            label.set_color(LEVEL_COLORS[i % len(LEVEL_COLORS)])
        right = max(1.15 * self.ious.max(), 1.15 * self.threshold, 0.1)
        axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(-0.02, right))
        axes.set_xlabel(f"IoU: mean {self.mean:.3f}, mean + std {self.threshold:.3f}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="gainsboro", linewidth=0.7)

    def _scatter(self, axes: Axes, points: np.ndarray, is_shown: np.ndarray) -> None:
        """Plot candidates at points, (M, 2), coloured by level and marked by state."""
        colors = np.array(LEVEL_COLORS)[self.levels % len(LEVEL_COLORS)]
        for state, (_, marker, size) in enumerate(STATES):
            chosen = is_shown & (self.states == state)
            x, y = points[chosen].T
            # A white rim keeps the colours apart from the image behind them.
            axes.scatter(x, y, s=size + 30, c="white", marker=marker, zorder=3 + state)
            edges: Any = colors[chosen].tolist()
            faces = edges if state == POSITIVE else "white"
            style: dict[str, Any] = {"marker": marker, "linewidths": 1.6, "zorder": 3 + state}
            axes.scatter(x, y, s=size, edgecolors=edges, facecolors=faces, **style)


def draw_summary(report: Mapping[str, Any], columns: Mapping[str, tuple[str, float, str]]) -> Image.Image:
    """Draw columns of a report as bars by size and assigner, and the histograms of the ATSS thresholds.

    Args:
        report: as ``report.json`` has it.
        columns: key of the report -> title, factor and format.
    """
    figure = _figure(12, 3.9)
    *axes, last = figure.subplots(1, len(columns) + 1)
    width, names = 0.8 / len(SIZE_COLORS), list(report["assigners"])
    for axis, (key, (title, factor, _)) in zip(axes, columns.items(), strict=True):
        for i, (size, color) in enumerate(SIZE_COLORS.items()):
            heights = [factor * (sizes[size][key] or 0) for sizes in report["assigners"].values()]
            axis.bar(np.arange(len(names)) + (i - 1) * width, heights, width, color=color)
        axis.set_xticks(range(len(names)), [name.replace(" + ", "\n+ ") for name in names], fontsize=7)
        axis.set_ylabel(title)
    edges, sizes = report["threshold_edges"], list(SIZE_COLORS)
    counts = [report["thresholds"][size]["histogram"] for size in sizes]
    colors = list(SIZE_COLORS.values())
    last.hist([edges[:-1]] * len(sizes), edges, weights=counts, color=colors, label=sizes, stacked=True)
    last.set(xlim=(0, 1), xlabel="threshold of ATSS (IoU)", ylabel="objects")
    last.legend(frameon=False, title="size")
    return _to_image(figure)


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: its global state and its choice of a display would leak into the caller.
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _to_image(figure: Figure) -> Image.Image:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
