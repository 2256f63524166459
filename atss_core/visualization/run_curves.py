"""Plot several training runs side by side: their losses, learning rates and tests."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atss_core.apps.check.charts import save_figure
from atss_core.utils.files import read_records
from atss_core.visualization.curves import Records, clean, marker, read_metrics, series, smooth, terms
from atss_core.visualization.fonts import SPACE, set_legend_literal

# Okabe and Ito's palette; further runs repeat it with other dashes.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
DASHES = ("-", "--", ":", "-.")


def plot_runs(runs: Mapping[str, Path], output: Path) -> None:
    """Draw the loss terms, the learning rate and the AP of runs, a panel each and a colour a run.

    Args:
        runs: name in the legend -> ``metrics.jsonl``; tests are read from ``evaluations.jsonl`` beside it.
        output: the image, in the format of its suffix.

    Raises:
        ValueError: if a file holds no finite loss.
    """
    records = {name: read_metrics(file) for name, file in runs.items()}
    tests = {name: read_tests(file.parent / "evaluations.jsonl") for name, file in runs.items()}
    titles = {"loss": "total loss"}
    for found in records.values():
        titles |= {key: name for key, (name, _) in terms(found).items() if key != "loss"}
    titles["lr"] = "learning rate"
    panels = [(key, title, records) for key, title in titles.items()]
    panels += [(name, f"{name} in tests", tests) for name in ("AP", "AP50") if any(tests.values())]
    figure = Figure(figsize=(11, 3.1 * -(-len(panels) // 2) + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).flatten()
    for panel, (key, title, values) in zip(axes, panels, strict=False):
        _plot(panel, key, title, values)
    for panel in axes[len(panels) :]:
        panel.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    columns = max(1, min(len(runs), 3))
    legend = figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=columns)
    set_legend_literal(legend)
    save_figure(figure, output)


def read_tests(file: Path) -> Records:
    """Read the metrics of the first data set of each test; nothing if there were no tests."""
    tests: Records = {}
    for test in read_records(file, sys.maxsize):
        tests.setdefault(int(test["iteration"]), test)
    return dict(sorted(tests.items()))


def names_of(files: Sequence[Path]) -> dict[str, Path]:
    """Name runs by the shortest ends of their folders' paths that tell them apart."""
    folders = [file.resolve().parent.parts for file in files]
    depth = 1
    while len({folder[-depth:] for folder in folders}) < len(set(folders)):
        depth += 1
    return {"/".join(folder[-depth:]): file for folder, file in zip(folders, files, strict=True)}


def _plot(axes: Axes, key: str, title: str, values: Mapping[str, Records]) -> None:
    is_test = key.startswith("AP")
    for number, (name, records) in enumerate(values.items()):
        iterations, raw = series(records, key)
        if not len(raw):
            continue
        color = COLORS[number % len(COLORS)]
        style = DASHES[number // len(COLORS) % len(DASHES)]
        drawn = raw if is_test or key == "lr" else smooth(raw)
        dot = "o" if is_test else marker(raw)
        label = SPACE + name
        axes.plot(iterations, drawn, style, color=color, linewidth=1.6, marker=dot, markersize=4, label=label)
        if not is_test and key != "lr":
            axes.plot(iterations, raw, color=color, alpha=0.18, linewidth=0.8)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("iteration")
    if key == "lr":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    clean(axes)
