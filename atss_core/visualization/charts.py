"""Charts of training runs: losses, learning rates and evaluations."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atss_core.utils.files import atomic_write, read_records
from atss_core.visualization.fonts import SPACE, set_legend_literal

logger = logging.getLogger(__name__)

Records = dict[int, dict[str, float]]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
DASHES = ("-", "--", ":", "-.")  # further runs repeat the colours with other dashes
# Key -> name in the legend and colour.
TERMS = {
    "loss": ("total", COLORS[6]),
    "loss_cls": ("classification", COLORS[0]),
    "loss_reg": ("box regression", COLORS[1]),
    "loss_centerness": ("centerness", COLORS[2]),
}
OTHER_COLORS = COLORS[3:6]
SMOOTHING = 1 / 20  # the share of all points that the running mean spans


def plot_curves(metrics_file: str | Path, output: str | Path) -> None:
    """Draw the losses of a run, raw and smoothed, above its learning rate.

    Args:
        metrics_file: JSON lines, each an object with "iteration", "loss", "loss_*" and "lr".
        output: the image, in the format of its suffix.

    Raises:
        ValueError: if the file holds no finite loss.
    """
    records = read_metrics(metrics_file)
    figure = _new_figure(9, 5.4)
    losses, rate = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    tops = []
    for key, (name, color) in _terms(records).items():
        iterations, values = _series(records, key)
        smoothed = _smooth(values)
        tops += [np.percentile(values, 99), smoothed.max()]
        losses.plot(iterations, values, color=color, alpha=0.22, linewidth=0.8)
        label, width = f"{SPACE}{name}  {smoothed[-1]:.3f}", 2.2 if key == "loss" else 1.6
        losses.plot(iterations, smoothed, color=color, linewidth=width, marker=_marker(values), label=label)
    losses.set_ylim(0, 1.08 * max(tops) or 1)  # a few wild first iterations must not flatten the rest
    losses.set_ylabel("loss")
    title = "last value, smoothed"
    set_legend_literal(losses.legend(title=title, frameon=False, loc="upper right", alignment="left"))
    _clean(losses)
    iterations, values = _series(records, "lr")
    rate.plot(iterations, values, color="#555555", linewidth=1.4, marker=_marker(values))
    if (values > 0).any():
        rate.set_yscale("log")  # each step divides the learning rate by ten
    rate.set_ylabel("learning rate")
    rate.set_xlabel("iteration")
    rate.margins(x=0.01)
    _clean(rate)
    save_figure(figure, Path(output))


def plot_runs(runs: Mapping[str, Path], output: Path) -> None:
    """Draw the loss terms, the learning rate and the AP of runs: one panel each, one color per run.

    Args:
        runs: name in the legend -> ``metrics.jsonl``, with ``evaluations.jsonl`` beside it.
        output: the image, in the format of its suffix.

    Raises:
        ValueError: if a file holds no finite loss.
    """
    records = {name: read_metrics(file) for name, file in runs.items()}
    evaluations = {name: _read_evaluations(file.parent / "evaluations.jsonl") for name, file in runs.items()}
    titles = {"loss": "total loss"}
    for run in records.values():
        titles |= {key: name for key, (name, _) in _terms(run).items() if key != "loss"}
    titles["lr"] = "learning rate"
    panels = [(key, title, records) for key, title in titles.items()]
    if any(evaluations.values()):
        panels += [(name, f"{name} in evaluations", evaluations) for name in ("AP", "AP50")]
    num_rows = math.ceil(len(panels) / 2)
    figure = _new_figure(11, 3.1 * num_rows + 0.5)
    axes = figure.subplots(num_rows, 2, squeeze=False).flatten()
    for panel, (key, title, values) in zip(axes, panels, strict=False):
        _plot_panel(panel, key, title, values)
    for panel in axes[len(panels) :]:
        panel.remove()
    columns = max(1, min(len(runs), 3))
    legend = figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper left", frameon=False, ncols=columns
    )
    set_legend_literal(legend)
    save_figure(figure, output)


def read_metrics(metrics_file: str | Path) -> Records:
    """Read JSON lines into iteration -> values.

    A killed run leaves half a line, which is skipped; a resumed run repeats iterations, of which the last
    values count.

    Raises:
        ValueError: if no line has an iteration and a finite loss.
    """
    records: Records = {}
    for number, line in enumerate(Path(metrics_file).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            iteration = int(record["iteration"])
        except (ValueError, KeyError, TypeError):
            logger.warning("%s, line %d is not a record of an iteration; skipped", metrics_file, number)
            continue
        records.setdefault(iteration, {}).update(record)
    if not len(_series(records, "loss")[0]):
        raise ValueError(
            f"expected JSON lines with 'iteration' and a finite 'loss' in {metrics_file}, got none;"
            " train at least until the first log line"
        )
    return dict(sorted(records.items()))


def _read_evaluations(file: Path) -> Records:
    """Read the metrics of the first dataset of each evaluation; nothing if there were none."""
    evaluations: Records = {}
    for record in read_records(file, sys.maxsize):
        evaluations.setdefault(int(record["iteration"]), record)
    return dict(sorted(evaluations.items()))


def _plot_panel(axes: Axes, key: str, title: str, runs: Mapping[str, Records]) -> None:
    is_loss = key.startswith("loss")
    for number, (name, records) in enumerate(runs.items()):
        iterations, values = _series(records, key)
        if not len(values):
            continue
        color, style = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
        drawn, label = _smooth(values) if is_loss else values, SPACE + name
        dot = "o" if key.startswith("AP") else _marker(values)
        axes.plot(iterations, drawn, style, color=color, linewidth=1.6, marker=dot, markersize=4, label=label)
        if is_loss:
            axes.plot(iterations, values, color=color, alpha=0.18, linewidth=0.8)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("iteration")
    if key == "lr":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _clean(axes)


def _terms(records: Records) -> dict[str, tuple[str, str]]:
    """Return the legend name and color of every loss with a value to draw."""
    others = {key for record in records.values() for key in record if key.startswith("loss_")} - TERMS.keys()
    colors = {
        key: (key.removeprefix("loss_"), OTHER_COLORS[i % len(OTHER_COLORS)])
        for i, key in enumerate(sorted(others))
    }
    return {key: look for key, look in (TERMS | colors).items() if len(_series(records, key)[0])}


def _series(records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the iterations and finite values of a key."""
    points = [(i, record[key]) for i, record in records.items() if math.isfinite(record.get(key, math.nan))]
    iterations, values = zip(*points, strict=True) if points else ((), ())
    return np.array(iterations), np.array(values, dtype=float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the centred running mean with triangular weights, over fewer points at both ends."""
    half = round(len(values) * SMOOTHING / 2)
    weights = np.bartlett(2 * half + 3)[1:-1]
    return np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")


def _marker(values: np.ndarray) -> str | None:
    """Show a lone point, through which there is no line."""
    return "o" if len(values) == 1 else None


def _clean(axes: Axes) -> None:
    """Remove the frame, and add horizontal lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def _new_figure(width: float, height: float) -> Figure:
    # Not pyplot: its global state and its choice of a display would leak into the caller.
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix, and make its folder; raises as ``atomic_write``."""
    content = io.BytesIO()  # writing a JPEG, Pillow would not notice that a disk is full
    figure.savefig(content, format=path.suffix[1:] or None)
    with atomic_write(path) as file:
        file.write(content.getbuffer())
