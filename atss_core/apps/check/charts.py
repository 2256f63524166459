"""Draw what is in a data set: sizes of objects and balance of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atss_core.visualization.charts import save_figure
from atss_core.visualization.fonts import drawable, set_literal

BLUE, ORANGE = "#0072B2", "#D55E00"
MOST_CLASSES = 40  # bars that one can still read


def plot_objects(
    path: Path, title: str, sides: np.ndarray, anchor_sides: Sequence[float], classes: Mapping[str, int]
) -> None:
    """Draw the histogram of object sizes with the anchors in it, beside the number of objects a class.

    Args:
        path: the image, in the format of its suffix.
        title: above it.
        sides: square roots of the objects' areas, in pixels of the network's input.
        anchor_sides: of the anchors, in the same pixels.
        classes: class name -> objects.
    """
    shown = dict(sorted(classes.items(), key=lambda item: -item[1])[:MOST_CLASSES])
    # Not pyplot: its global state and its choice of a display would leak into the caller.
    figure = Figure(figsize=(11, max(3.6, 1.2 + 0.22 * len(shown))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    set_literal(figure.suptitle(""), title)
    left, right = figure.subplots(1, 2)
    _plot_sides(left, sides, anchor_sides)
    _plot_classes(right, shown, len(classes))
    save_figure(figure, path)


def _plot_sides(axes: Axes, sides: np.ndarray, anchor_sides: Sequence[float]) -> None:
    edges = np.geomspace(2, 2048, 41)
    axes.hist(np.clip(sides, edges[0], edges[-1]), bins=edges.tolist(), color=BLUE)
    for i, side in enumerate(sorted(set(anchor_sides))):
        axes.axvline(side, color=ORANGE, linewidth=1.2, label="" if i else "anchors")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("side of the object, pixels of the network's input")
    axes.set_ylabel("objects")
    axes.legend(frameon=False)


def _plot_classes(axes: Axes, classes: Mapping[str, int], num_classes: int) -> None:
    names = [name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}" for name in classes]
    places = np.arange(len(names))
    bars = axes.barh(places, list(classes.values()), color=BLUE)
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(places, [drawable(name)[0] for name in names], fontsize=8)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        set_literal(label, name)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    more = num_classes - len(classes)
    axes.set_xlabel("objects" + (f" of the {len(classes)} largest classes, of {num_classes}" if more else ""))
