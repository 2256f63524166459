"""Charts of an evaluation as SVG, small enough for a phone and crisp in print."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from atss_core.visualization.fonts import SPACE, set_legend_literal, set_literal

# Okabe and Ito's palette, which colour-blind readers can tell apart; the colours of utils/curves.py.
BLUE, ORANGE, DARK = "#0072B2", "#D55E00", "#222222"
RECALLS = np.linspace(0, 1, 101)
# Text stays text, which is small and takes a font of the reader; equal charts are equal files.
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "atss", "font.size": 9.0}
POINTS_AN_INCH = 72
LONGEST_TITLE = 20


class Chart(NamedTuple):
    """A chart for a page.

    Attributes:
        uri: the image itself, as a data URI.
        size: (width, height) in pixels of a page.
    """

    uri: str
    size: tuple[int, int]


def draw_precision_recall(curves: Mapping[str, np.ndarray]) -> Chart:
    """Draw the precision at 101 recalls of each named curve, at most three."""
    figure = _figure(4.4, 3.2)
    axes = figure.subplots()
    for (name, precision), color, style in zip(
        curves.items(), (BLUE, ORANGE, DARK), ("-", "--", ":"), strict=False
    ):
        axes.plot(RECALLS, precision, style, color=color, linewidth=1.8, label=SPACE + name)
    _unit_axes(axes, "recall: share of the objects that are found", "precision: share that is right")
    set_legend_literal(axes.legend(frameon=False, loc="lower left"))
    return _chart(figure)


def draw_precision_recall_of_classes(
    curves: Sequence[tuple[str, np.ndarray, np.ndarray]], columns: int = 3
) -> Chart:
    """Draw a small chart for each class.

    Args:
        curves: titles with the precision at 101 recalls at IoU 0.5 and at 0.75.
        columns: charts in a row.
    """
    rows = math.ceil(len(curves) / columns)
    figure = _figure(4.4, 0.45 + 1.35 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (title, at_50, at_75) in zip(grid, curves, strict=False):
        axes.plot(RECALLS, at_50, color=BLUE, linewidth=1.4, label="IoU 0.5")
        axes.plot(RECALLS, at_75, "--", color=ORANGE, linewidth=1.4, label="IoU 0.75")
        set_literal(axes.set_title("", fontsize=8), shorten(title, LONGEST_TITLE))
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


def draw_scores(right: np.ndarray, wrong: np.ndarray, threshold: float) -> Chart:
    """Draw how many right and wrong detections have which score.

    Args:
        right: scores of the right detections.
        wrong: scores of the wrong ones.
        threshold: a score to mark.
    """
    figure = _figure(4.4, 3.2)
    axes = figure.subplots()
    top = 1.0 if not len(right) + len(wrong) else min(1.0, max(right.max(initial=0), wrong.max(initial=0)))
    edges = np.linspace(0, max(top, 0.05), 41)
    for scores, color, name in ((wrong, ORANGE, "wrong"), (right, BLUE, "right")):
        counts, _ = np.histogram(scores, edges)
        axes.stairs(counts, edges, color=color, alpha=0.25, fill=True)
        axes.stairs(counts, edges, color=color, linewidth=1.5, label=name)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _mark_threshold(axes, threshold)
    axes.set_xlabel("score")
    axes.set_ylabel("detections")
    axes.legend(framealpha=0.85, edgecolor="none")
    _clean(axes)
    return _chart(figure)


def draw_thresholds(
    scores: np.ndarray, precision: np.ndarray, recall: np.ndarray, f1: np.ndarray, threshold: float
) -> Chart:
    """Draw precision, recall and F1 of the detections with a score or more, over that score."""
    figure = _figure(4.4, 3.2)
    axes = figure.subplots()
    for values, color, style, name in (
        (precision, BLUE, "--", "precision"),
        (recall, ORANGE, ":", "recall"),
        (f1, DARK, "-", "F1"),
    ):
        axes.plot(scores, values, style, color=color, linewidth=1.8, label=name)
    _mark_threshold(axes, threshold)
    _unit_axes(axes, "detections with this score or more count", "")
    axes.set_xlim(0, max(float(scores.max(initial=0)), 0.05))
    axes.legend(framealpha=0.85, edgecolor="none", loc="best")
    return _chart(figure)


def shorten(text: str, longest: int) -> str:
    """Cut a text that is too long for its place."""
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: its global state and its choice of a display would leak into the caller.
    with matplotlib.rc_context(SVG):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
    return figure


def _chart(figure: Figure) -> Chart:
    stream = io.BytesIO()
    with matplotlib.rc_context(SVG), warnings.catch_warnings():
        # The reader's font draws the letters, not the one that measures them here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    width, height = (figure.get_size_inches() * POINTS_AN_INCH * 4 / 3).round().astype(int).tolist()
    return Chart(
        f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}", (width, height)
    )


def _mark_threshold(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color="#555555", linewidth=1, label=f"best F1: {threshold:.2f}")


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
