"""The metrics of an evaluation: their table, and their comparison with published ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from atss_core.utils.text import printable

logger = logging.getLogger(__name__)

# In the order of COCOeval.stats. AP and AR100 average over IoU 0.5 to 0.95; s, m, l are object areas up to
# 32^2, up to 96^2 and above, in square pixels of the original image.
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
UNDEFINED = -1.0  # of a metric without ground truth, as in COCOeval
TABLE_WIDTH = 100


@dataclass(frozen=True)
class CocoMetrics:
    """The metrics of an evaluation, in 0..1, -1 without ground truth.

    Attributes:
        overall: the twelve numbers of ``METRIC_NAMES``.
        per_class: class name -> AP.
        per_class_ap50: class name -> AP at IoU 0.5.
    """

    overall: dict[str, float]
    per_class: dict[str, float] = field(default_factory=dict)
    per_class_ap50: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain dictionaries, ready for JSON."""
        return {
            "overall": dict(self.overall),
            "per_class": dict(self.per_class),
            "per_class_ap50": dict(self.per_class_ap50),
        }

    def table(self, sort_by: str = "name") -> str:
        """Return all numbers in percent as text of at most 100 columns.

        Args:
            sort_by: "name" sorts the classes alphabetically, "AP" puts the best first.

        Raises:
            ValueError: if ``sort_by`` is something else.
        """
        orders: dict[str, Callable[[str], str | float]] = {
            "name": str.lower,
            "AP": lambda name: -self.per_class[name],
        }
        if sort_by not in orders:
            raise ValueError(f"sort_by: expected one of {', '.join(orders)}, got {sort_by!r}")
        overall = [
            "".join(f"{name:>7}" for name in self.overall),
            "".join(f"{percent(value):>7}" for value in self.overall.values()),
        ]
        names = sorted(self.per_class, key=orders[sort_by])
        rows = [
            (printable(name), self.per_class[name], self.per_class_ap50.get(name, UNDEFINED))
            for name in names
        ]
        return "\n".join([*overall, "", *_class_columns(rows)] if rows else overall)


def check_expected_results(
    metrics: CocoMetrics, expected: Sequence[tuple[str, str, float, float]], sigma_tol: float
) -> list[str]:
    """Compare metrics with published ones and log every comparison.

    Args:
        metrics: the measured ones.
        expected: (task, metric, mean, standard deviation), for example ("bbox", "AP", 0.393, 0.002).
        sigma_tol: accepted distance from the mean, in standard deviations.

    Returns:
        A message for each metric out of its range; empty if all are as expected.

    Raises:
        ValueError: if an entry does not have four values or names an unknown task or metric.
    """
    failures = []
    for entry in expected:
        if len(entry) != 4:
            raise ValueError(
                f"TEST.EXPECTED_RESULTS: expected (task, metric, mean, std), got {entry!r}. Write it like "
                "('bbox', 'AP', 0.393, 0.002)."
            )
        task, name, mean, std = entry
        if task != "bbox":
            raise ValueError(f"TEST.EXPECTED_RESULTS: expected the task 'bbox', got {task!r}. Correct it.")
        if name not in metrics.overall:
            choices = ", ".join(metrics.overall)
            raise ValueError(f"TEST.EXPECTED_RESULTS: expected one of {choices}, got {name!r}. Correct it.")
        actual, tolerance = metrics.overall[name], sigma_tol * float(std)
        message = f"bbox {name} is {actual:.4f}, expected {float(mean):.4f} +- {tolerance:.4f}"
        if abs(actual - float(mean)) <= tolerance:
            logger.info("PASS: %s", message)
        else:
            logger.error("FAIL: %s", message)
            failures.append(message)
    return failures


def mean_defined(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of the values that are defined, ``UNDEFINED`` without any."""
    defined = np.asarray(values)
    defined = defined[defined > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def percent(value: float) -> str:
    """Return a fraction in percent as text, "-" where it is not defined."""
    return "-" if value == UNDEFINED else f"{100 * value:.1f}"


def _class_columns(rows: Sequence[tuple[str, float, float]]) -> list[str]:
    """Format rows of (name, AP, AP50) in columns, read from top to bottom."""
    separator, num_digits = " " * 4, 14
    width = min(max(len("class"), *(len(name) for name, _, _ in rows)), TABLE_WIDTH - num_digits)
    per_line = min((TABLE_WIDTH + len(separator)) // (width + num_digits + len(separator)), len(rows))
    num_lines = -(-len(rows) // per_line)
    cells = [f"{name[:width]:<{width}}{percent(ap):>7}{percent(ap50):>7}" for name, ap, ap50 in rows]
    header = separator.join(
        [f"{'class':<{width}}{'AP':>7}{'AP50':>7}"] * len(range(0, len(cells), num_lines))
    )
    return [header, *(separator.join(cells[line::num_lines]) for line in range(num_lines))]
