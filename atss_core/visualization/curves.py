"""Plot the losses and the learning rate of a training run."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atss_core.apps.check.charts import save_figure
from atss_core.visualization.fonts import SPACE, set_legend_literal

logger = logging.getLogger(__name__)

Records = dict[int, dict[str, float]]

# Key -> name in the legend and colour (Okabe and Ito's palette, which colour-blind readers can tell apart).
TERMS = {
    "loss": ("total", "#222222"),
    "loss_cls": ("classification", "#0072B2"),
    "loss_reg": ("box regression", "#D55E00"),
    "loss_centerness": ("centerness", "#009E73"),
}
OTHER_COLORS = ("#CC79A7", "#E69F00", "#56B4E9")
# The running mean spans this share of all points.
SMOOTHING = 1 / 20


def plot_curves(metrics_file: str | Path, output: str | Path) -> None:
    """Draw the losses of a run, raw and smoothed, above its learning rate.

    Args:
        metrics_file: JSON lines, each an object with "iteration", "loss", "loss_*" and "lr".
        output: the image, in the format of its suffix.

    Raises:
        ValueError: if the file holds no finite loss.
    """
    records = read_metrics(metrics_file)
    # Not pyplot: its global state and its choice of a display would leak into the caller.
    figure = Figure(figsize=(9, 5.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, rate = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    _plot_losses(losses, records)
    _plot_rate(rate, records)
    save_figure(figure, Path(output))


def read_metrics(metrics_file: str | Path) -> Records:
    """Read JSON lines into iteration -> values.

    A run that was killed leaves half a line, and one that was resumed repeats iterations: half lines are
    skipped and the last value of an iteration counts.

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
    records = dict(sorted(records.items()))
    if not len(series(records, "loss")[0]):
        raise ValueError(
            f"expected JSON lines with 'iteration' and a finite 'loss' in {metrics_file}, got none;"
            " train at least until the first log line"
        )
    return records


def _plot_losses(axes: Axes, records: Records) -> None:
    tops = []
    for key, (name, color) in terms(records).items():
        iterations, values = series(records, key)
        smoothed = smooth(values)
        tops += [np.percentile(values, 99), smoothed.max()]
        axes.plot(iterations, values, color=color, alpha=0.22, linewidth=0.8)
        axes.plot(
            iterations,
            smoothed,
            color=color,
            linewidth=2.2 if key == "loss" else 1.6,
            marker=marker(values),
            label=f"{SPACE}{name}  {smoothed[-1]:.3f}",
        )
    # A few wild first iterations must not flatten the rest.
    axes.set_ylim(0, 1.08 * max(tops) or 1)
    axes.set_ylabel("loss")
    legend = axes.legend(title="last value, smoothed", frameon=False, loc="upper right", alignment="left")
    set_legend_literal(legend)
    clean(axes)


def _plot_rate(axes: Axes, records: Records) -> None:
    iterations, values = series(records, "lr")
    axes.plot(iterations, values, color="#555555", linewidth=1.4, marker=marker(values))
    if (values > 0).any():
        # Each step divides the rate by ten: only this scale shows the later ones.
        axes.set_yscale("log")
    axes.set_ylabel("learning rate")
    axes.set_xlabel("iteration")
    axes.margins(x=0.01)
    clean(axes)


def terms(records: Records) -> dict[str, tuple[str, str]]:
    """Return the legend name and colour of every loss with a value to draw."""
    keys = {key for record in records.values() for key in record if key.startswith("loss_")} - TERMS.keys()
    others = {
        key: (key.removeprefix("loss_"), OTHER_COLORS[i % len(OTHER_COLORS)])
        for i, key in enumerate(sorted(keys))
    }
    return {key: look for key, look in (TERMS | others).items() if len(series(records, key)[0])}


def series(records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the iterations and finite values of a key."""
    points = [(i, record[key]) for i, record in records.items() if math.isfinite(record.get(key, math.nan))]
    iterations, values = zip(*points, strict=True) if points else ((), ())
    return np.array(iterations), np.array(values, dtype=float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the centred running mean with triangular weights, over fewer points at both ends."""
    half = round(len(values) * SMOOTHING / 2)
    weights = np.bartlett(2 * half + 3)[1:-1]
    return np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")


def marker(values: np.ndarray) -> str | None:
    """Show a lone point, of which no line can be drawn."""
    return "o" if len(values) == 1 else None


def clean(axes: Axes) -> None:
    """Leave out what does not tell anything."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
