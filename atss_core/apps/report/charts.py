"""Charts of the report as SVG, small enough for a phone and crisp in print."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from atss_core.visualization.fonts import SPACE, set_legend_literal, set_literal

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, DARK = "#0072B2", "#D55E00", "#222222"
RECALLS = np.linspace(0, 1, 101)
# Text stays text, which is small and uses a font of the reader; equal charts are equal files.
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "atss", "font.size": 9.0}
WIDTH, HEIGHT = 4.4, 3.2  # inches
PIXELS_PER_INCH = 96  # of CSS
MAX_TITLE = 20

Chart = tuple[str, tuple[int, int]]  # data URI, (width, height) in pixels of a page


def draw_precision_recall(curves: Mapping[str, np.ndarray]) -> Chart:
    """Draw the precision at 101 recalls of each named curve, at most three."""
    figure = _figure()
    axes = figure.subplots()
    styles = ((BLUE, "-"), (ORANGE, "--"), (DARK, ":"))
    for (name, precision), (color, style) in zip(curves.items(), styles, strict=False):
        axes.plot(RECALLS, precision, style, color=color, linewidth=1.8, label=SPACE + name)
    _unit_axes(axes, "recall: share of the objects that are detected", "precision: share that is correct")
    set_legend_literal(axes.legend(frameon=False, loc="lower left"))
    return _chart(figure)


def draw_precision_recall_of_classes(
    curves: Sequence[tuple[str, np.ndarray, np.ndarray]], columns: int = 3
) -> Chart:
    """Draw a small chart per class.

    Args:
        curves: titles with the precision at 101 recalls at IoU 0.5 and at 0.75.
        columns: charts per row.
    """
    rows = math.ceil(len(curves) / columns)
    figure = _figure(0.45 + 1.35 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (title, at_50, at_75) in zip(grid, curves, strict=False):
        axes.plot(RECALLS, at_50, color=BLUE, linewidth=1.4, label="IoU 0.5")
        axes.plot(RECALLS, at_75, "--", color=ORANGE, linewidth=1.4, label="IoU 0.75")
        if len(title) > MAX_TITLE:
            title = f"{title[: MAX_TITLE - 1]}\N{HORIZONTAL ELLIPSIS}"
        set_literal(axes.set_title("", fontsize=8), title)
        _unit_axes(axes, "", "")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    for axes in grid[len(curves) :]:
        axes.set_axis_off()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)
    return _chart(figure)


def draw_scores(correct: np.ndarray, false: np.ndarray, threshold: float) -> Chart:
    """Draw the histograms of the scores of correct and false detections, with a threshold."""
    figure = _figure()
    axes = figure.subplots()
    top = min(1.0, float(np.concatenate([correct, false]).max(initial=0)))
    edges = np.linspace(0, max(top, 0.05), 41)
    for scores, color, name in ((false, ORANGE, "false"), (correct, BLUE, "correct")):
        counts, _ = np.histogram(scores, edges)
        axes.stairs(counts, edges, color=color, alpha=0.25, fill=True)
        axes.stairs(counts, edges, color=color, linewidth=1.5, label=name)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("score")
    axes.set_ylabel("detections")
    _mark_threshold(axes, threshold)
    _clean(axes)
    return _chart(figure)


def draw_thresholds(
    scores: np.ndarray, precision: np.ndarray, recall: np.ndarray, f1: np.ndarray, threshold: float
) -> Chart:
    """Draw precision, recall and F1 over the score threshold."""
    figure = _figure()
    axes = figure.subplots()
    axes.plot(scores, precision, "--", color=BLUE, linewidth=1.8, label="precision")
    axes.plot(scores, recall, ":", color=ORANGE, linewidth=1.8, label="recall")
    axes.plot(scores, f1, color=DARK, linewidth=1.8, label="F1")
    _unit_axes(axes, "score threshold", "")
    axes.set_xlim(0, max(float(scores.max(initial=0)), 0.05))
    _mark_threshold(axes, threshold)
    return _chart(figure)


def _figure(height: float = HEIGHT) -> Figure:
    # Not pyplot: its global state and its choice of a display would leak into the caller.
    with matplotlib.rc_context(SVG):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
    return figure


def _chart(figure: Figure) -> Chart:
    stream = io.BytesIO()
    with matplotlib.rc_context(SVG), warnings.catch_warnings():
        # The reader's font draws the letters, not the one that measures them here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    width, height = (figure.get_size_inches() * PIXELS_PER_INCH).round().astype(int).tolist()
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:image/svg+xml;base64,{content}", (width, height)


def _mark_threshold(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color="#555555", linewidth=1, label=f"best F1: {threshold:.2f}")
    axes.legend(framealpha=0.85, edgecolor="none", loc="best")


def _unit_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
