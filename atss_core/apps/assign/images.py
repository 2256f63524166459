"""Draw how anchors are assigned: the candidates of an object, positives on an image, and summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from atss_core.visualization.boxes import class_color
from atss_core.visualization.fonts import set_literal

# Colours of levels, which those with colour-blindness can tell apart (Okabe and Ito).
LEVEL_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
SIZE_COLORS = {"S": "#0072B2", "M": "#E69F00", "L": "#009E73"}
RED = (214, 39, 40)
FIRST_LEVEL = 3  # P3 is the finest

# What became of a candidate, in the order in which they are drawn.
CANDIDATE, OUTSIDE, LOST, POSITIVE = range(4)
STATES = {
    CANDIDATE: ("o", "below the threshold"),
    OUTSIDE: ("x", "reaches it, but centre outside"),
    LOST: ("^", "reaches it, but another object's"),
    POSITIVE: ("o", "positive"),
}
TILE_SIDE = 420  # pixels of the longer side of an image
SMOOTHING = 2  # drawn so many times as large, because Pillow does not smooth lines


@dataclass(frozen=True)
class ObjectView:
    """One object and its candidates, in pixels of the network's input.

    Attributes:
        title: above its drawing.
        box: (x1, y1, x2, y2), shape (4,).
        centers: (x, y) of the candidates' centres, shape (M, 2).
        levels: of the candidates, from 0, int64 (M,).
        ious: of the candidates with the object, shape (M,).
        states: CANDIDATE, OUTSIDE, LOST or POSITIVE, int64 (M,).
        mean: of the IoUs.
        threshold: mean plus standard deviation of the IoUs.
        strides: stride of each level, in pixels.
    """

    title: str
    box: np.ndarray
    centers: np.ndarray
    levels: np.ndarray
    ious: np.ndarray
    states: np.ndarray
    mean: float
    threshold: float
    strides: Sequence[int]


def fit_tile(image: Image.Image, factor: int = 1) -> Image.Image:
    """Resize an image so that its longer side is that of a tile, times a factor."""
    scale = factor * TILE_SIDE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def draw_positives(
    image: Image.Image,
    image_size: tuple[int, int],
    boxes: np.ndarray,
    points: np.ndarray,
    owners: np.ndarray,
) -> Image.Image:
    """Draw the centres of positive anchors in the colours of their objects; red are objects without any.

    Args:
        image: the image, of any size.
        image_size: (height, width) of the network's input, the pixels of boxes and points.
        boxes: objects, shape (G, 4).
        points: (x, y) of the positives, shape (P, 2).
        owners: the object of each positive, int64 (P,).
    """
    canvas = fit_tile(image, SMOOTHING)
    canvas = Image.blend(canvas, Image.new("RGB", canvas.size, "white"), 0.45)  # so that colours show
    pen = ImageDraw.Draw(canvas)
    scale = np.array([canvas.width / image_size[1], canvas.height / image_size[0]])
    is_served = np.isin(np.arange(len(boxes)), owners)
    corners = (boxes.reshape(-1, 2, 2) * scale).round().astype(int).reshape(-1, 4).tolist()
    for index in np.argsort(~is_served, kind="stable").tolist():  # those without any on top
        if is_served[index]:
            pen.rectangle(corners[index], outline=class_color(index + 1), width=SMOOTHING)
        else:
            pen.rectangle(corners[index], outline=RED, width=4 * SMOOTHING)
    radius = 2.5 * SMOOTHING
    for (x, y), owner in zip((points * scale).tolist(), owners.tolist(), strict=True):
        circle = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(circle, fill=class_color(owner + 1), outline="black")
    return canvas.reduce(SMOOTHING)


def draw_object(image: Image.Image, image_size: tuple[int, int], view: ObjectView) -> Image.Image:
    """Draw an object with the centres of its candidates, beside their IoUs by level.

    Args:
        image: the image, of any size.
        image_size: (height, width) of the network's input, the pixels of the view.
        view: the object.
    """
    figure = _figure(8.4, 4.0)
    set_literal(figure.suptitle("", fontsize=12), view.title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    window = _window(view)
    _show_crop(left, image, image_size, window)
    x1, y1, x2, y2 = view.box.tolist()
    for color, width in (("white", 4.0), ("black", 1.8)):
        left.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=width))
    is_seen = (np.abs(view.centers - window[:2]) <= window[2]).all(axis=1)
    _scatter(left, view.centers[:, 0], view.centers[:, 1], view, is_seen)
    if not is_seen.all():
        left.set_xlabel(f"{np.count_nonzero(~is_seen)} candidates lie outside this view", fontsize=9)
    _plot_ious(right, view)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return _to_image(figure)


def draw_summary(
    positives: Mapping[str, Mapping[str, float | None]],
    shares: Mapping[str, Mapping[str, float | None]],
    thresholds: Mapping[str, Sequence[int]],
    edges: np.ndarray,
) -> Image.Image:
    """Draw positives and objects without any as bars of sizes and rules, and the thresholds by size.

    Args:
        positives: rule -> size -> positives per object, None where there is no object.
        shares: rule -> size -> share of objects without a positive.
        thresholds: size -> histogram of the thresholds of ATSS.
        edges: of the histograms.
    """
    figure = _figure(12, 3.9)
    first, second, third = figure.subplots(1, 3)
    _plot_bars(first, positives, 1, "positives per object")
    _plot_bars(second, shares, 100, "objects without a positive, %")
    bottom = np.zeros(len(edges) - 1)
    for size, color in SIZE_COLORS.items():
        counts = np.array(thresholds[size])
        third.bar(edges[:-1], counts, np.diff(edges), bottom, align="edge", color=color, label=size)
        bottom += counts
    third.set_xlim(0, 1)
    third.set_xlabel("threshold of ATSS (IoU)")
    third.set_ylabel("objects")
    third.legend(frameon=False, title="size")
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


def _window(view: ObjectView) -> np.ndarray:
    """Return centre and half the side of the square to show: the object, its positives, the finest cells."""
    center = (view.box[:2] + view.box[2:]) / 2
    offsets = np.abs(view.centers - center).max(axis=1)
    reach = offsets[(view.states != CANDIDATE) | (view.levels == 0)].max(initial=0)
    half = max(0.75 * (view.box[2:] - view.box[:2]).max(), 1.2 * reach, 3 * view.strides[0])
    return np.array([*center, half])


def _show_crop(axes: Axes, image: Image.Image, image_size: tuple[int, int], window: np.ndarray) -> None:
    height, width = image_size
    x, y, half = window.tolist()
    x1, y1 = max(x - half, 0), max(y - half, 0)
    x2, y2 = min(x + half, width), min(y + half, height)
    factors = image.width / width, image.height / height
    if x2 > x1 and y2 > y1:
        crop = image.convert("RGB").crop(
            (
                int(x1 * factors[0]),
                int(y1 * factors[1]),
                max(round(x2 * factors[0]), int(x1 * factors[0]) + 1),
                max(round(y2 * factors[1]), int(y1 * factors[1]) + 1),
            )
        )
        axes.imshow(np.asarray(crop), extent=(x1, x2, y2, y1), alpha=0.75, interpolation="bilinear")
    axes.set_xlim(x - half, x + half)
    axes.set_ylim(y + half, y - half)
    axes.set_aspect("equal")
    axes.set_facecolor("whitesmoke")
    axes.set_xticks([])
    axes.set_yticks([])


def _scatter(axes: Axes, x: np.ndarray, y: np.ndarray, view: ObjectView, is_shown: np.ndarray) -> None:
    colors = np.array([LEVEL_COLORS[level % len(LEVEL_COLORS)] for level in view.levels.tolist()])
    for state, (marker, _) in STATES.items():
        chosen = is_shown & (view.states == state)
        if not chosen.any():
            continue
        places, shown = (x[chosen], y[chosen]), colors[chosen].tolist()
        is_large = state == POSITIVE
        if marker == "x":
            axes.scatter(*places, s=46, c=shown, marker=marker, linewidths=2.2, zorder=3 + state)
            continue
        # A white rim keeps the colours apart from the image behind them.
        axes.scatter(*places, s=90 if is_large else 52, c="white", marker=marker, zorder=3 + state)
        axes.scatter(
            *places,
            s=58 if is_large else 26,
            facecolors=shown if is_large else "white",
            edgecolors=shown,
            marker=marker,
            linewidths=1.6,
            zorder=3 + state,
        )


def _plot_ious(axes: Axes, view: ObjectView) -> None:
    num_levels = len(view.strides)
    # Candidates of a level lie a little above each other, so that equal IoUs can be counted.
    heights = view.levels.astype(float)
    for level in range(num_levels):
        members = np.flatnonzero(view.levels == level)
        heights[members] += np.linspace(-0.36, 0.36, len(members)) if len(members) > 1 else 0
    axes.axvline(view.mean, color="dimgray", linestyle=(0, (4, 3)), linewidth=1.3)
    axes.axvline(view.threshold, color="black", linewidth=1.5)
    _scatter(axes, view.ious, heights, view, np.ones(len(heights), dtype=bool))
    names = [f"P{FIRST_LEVEL + i}\nstride {stride}" for i, stride in enumerate(view.strides)]
    axes.set_yticks(range(num_levels), names, fontsize=8)
    for label, i in zip(axes.get_yticklabels(), range(num_levels), strict=True):
        label.set_color(LEVEL_COLORS[i % len(LEVEL_COLORS)])
    axes.set_ylim(num_levels - 0.5, -0.5)
    axes.set_xlim(-0.02, max(1.15 * float(view.ious.max()), 1.15 * view.threshold, 0.1))
    axes.set_xlabel(f"IoU: mean {view.mean:.3f}, mean + std {view.threshold:.3f}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="gainsboro", linewidth=0.7)


def _legend() -> list[Line2D]:
    handles = [
        Line2D(
            [],
            [],
            color="dimgray",
            marker=marker,
            linestyle="",
            markerfacecolor="dimgray" if state == POSITIVE else "white",
            markersize=8 if state == POSITIVE else 6,
            label=words,
        )
        for state, (marker, words) in STATES.items()
    ]
    mean = Line2D([], [], color="dimgray", linestyle=(0, (4, 3)), label="mean of the IoUs")
    threshold = Line2D([], [], color="black", label="threshold: mean + std")
    return [*handles, mean, threshold]


def _plot_bars(
    axes: Axes, values: Mapping[str, Mapping[str, float | None]], factor: float, name: str
) -> None:
    width = 0.8 / len(SIZE_COLORS)
    for i, (size, color) in enumerate(SIZE_COLORS.items()):
        heights = [factor * (by_size[size] or 0) for by_size in values.values()]
        axes.bar(np.arange(len(values)) + (i - 1) * width, heights, width, color=color, label=size)
    axes.set_xticks(range(len(values)), [rule.replace(" + ", "\n+ ") for rule in values], fontsize=7)
    axes.set_ylabel(name)
