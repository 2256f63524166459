"""The sections of the report that come from matching detections to objects, as parts of a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atss_core.apps.report.analysis import IGNORED, RIGHT, Analysis, score_curves
from atss_core.apps.report.charts import (
    Chart,
    draw_precision_recall,
    draw_precision_recall_of_classes,
    draw_scores,
    draw_thresholds,
)
from atss_core.apps.report.tide import KINDS, ErrorBreakdown
from atss_core.evaluation.backends import IOU_50, IOU_75, UNDEFINED, Measured
from atss_core.evaluation.metrics import percent
from atss_core.visualization import html

# What links lead to -> title.
SECTIONS = {
    "numbers": "Numbers",
    "classes": "Classes",
    "curves": "Precision and recall",
    "threshold": "Which score to choose",
    "confusion": "What is taken for what",
    "errors": "What costs AP",
    "worst": "Worst images",
    "best": "Best images",
    "origin": "Where this comes from",
}
KIND_MEANINGS = {
    "classification": "right place (IoU 0.5 or more), wrong class",
    "localisation": "right class, but the box overlaps the object too little (IoU 0.1 to 0.5)",
    "both": "wrong class, and overlaps too little",
    "duplicate": "a second box on an object that a better one has found",
    "background": "nothing is there",
    "missed": "objects that no detection is near, whatever its score",
}
LONG_TABLE = 20  # classes from which on a table is folded
LARGEST_MATRIX = 12  # classes that a matrix can show
MOST_PAIRS = 15
SMALL_CHARTS = 12


def describe_classes(analysis: Analysis, measured: Measured) -> list[str]:
    """Return the table of the classes, the best first."""
    confusion, num_objects = analysis.confusion(), analysis.num_objects
    right = np.diag(confusion)[:-1]
    called = confusion[:, :-1].sum(axis=0)
    by_class = [
        (
            _mean(measured.precision[:, :, k, 0]),
            [
                name,
                f"{num_objects[k]:,}",
                percent(_mean(measured.precision[:, :, k, 0])),
                percent(_mean(measured.precision[IOU_50, :, k, 0])),
                percent(_mean(measured.precision[IOU_75, :, k, 0])),
                percent(_mean(measured.recall[:, k, 0])),
                percent(_share(right[k], called[k])),
                percent(_share(right[k], num_objects[k])),
            ],
        )
        for k, name in enumerate(analysis.class_names)
    ]
    rows = [row for _, row in sorted(by_class, key=lambda item: -item[0])]
    header = ["class", "objects", "AP", "AP50", "AP75", "AR", "precision", "recall"]
    note = (
        f"The best class first. Precision and recall are those at the threshold, a score of "
        f"{analysis.threshold.score:.2f}; '-' stands where there is nothing to measure."
    )
    parts = [html.heading(SECTIONS["classes"], "classes"), html.text("p", note)]
    if len(rows) <= LONG_TABLE:
        return [*parts, html.table("By class", header, rows)]
    measurable = [row for row in rows if row[2] != "-"]
    lowest = html.table("The ten classes with the lowest AP", header, measurable[::-1][:10])
    return [*parts, lowest, html.folded(f"All {len(rows)} classes", [html.table("By class", header, rows)])]


def describe_curves(analysis: Analysis, measured: Measured) -> list[str]:
    """Return the curves of precision over recall, of all classes together and of each."""
    precision = measured.precision[:, :, :, 0]
    defined = np.flatnonzero(precision[0, 0] > UNDEFINED)
    parts = [
        html.heading(SECTIONS["curves"], "curves"),
        html.text(
            "p",
            "From the best score to the worst: as more of the objects are found, which share of the "
            "detections is still right? The area below a curve is the AP at its IoU. A curve that falls to "
            "0 early has missed objects; one that starts low is wrong with high scores.",
        ),
    ]
    if not len(defined):
        return [*parts, html.text("p", "There is no object to find.")]
    precision = precision[:, :, defined]
    overall = {
        "IoU 0.5": precision[IOU_50].mean(axis=1),
        "IoU 0.75": precision[IOU_75].mean(axis=1),
        "mean of IoU 0.5 to 0.95": precision.mean(axis=(0, 2)),
    }
    order = np.argsort(-precision.mean(axis=(0, 1)), kind="stable")
    caption = "The classes, the best first."
    if len(order) > SMALL_CHARTS:
        half = SMALL_CHARTS // 2
        order = np.r_[order[:half], order[-half:]]
        caption = f"The {half} best classes and the {half} worst."
    of_classes = [
        (analysis.class_names[defined[k]], precision[IOU_50, :, k], precision[IOU_75, :, k])
        for k in order.tolist()
    ]
    charts = [
        _figure(draw_precision_recall(overall), "All classes: the mean of their curves."),
        _figure(draw_precision_recall_of_classes(of_classes), caption),
    ]
    return [*parts, html.wide(html.grid(charts, 420))]


def describe_threshold(analysis: Analysis) -> list[str]:
    """Return what each score would give, and which detections have which."""
    threshold, scores = analysis.threshold, analysis.found.scores
    is_right, counts = analysis.outcome == RIGHT, analysis.outcome != IGNORED
    curves = score_curves(scores[counts], is_right[counts], int(analysis.num_objects.sum()))
    words = (
        "AP looks at all detections; who uses them takes those from some score on. F1 balances precision "
        f"and recall and is best, {percent(threshold.f1)}, from {threshold.score:.3f} on: there "
        f"{percent(threshold.precision)}% of the detections are right (IoU 0.5 or more) and "
        f"{percent(threshold.recall)}% of the objects are found. Choose a higher score where false alarms "
        "are dear, a lower one where misses are."
    )
    charts = [
        _figure(
            draw_thresholds(*curves, threshold.score),
            "Precision, recall and F1 by the score chosen, IoU 0.5.",
        ),
        _figure(
            draw_scores(scores[is_right], scores[counts & ~is_right], threshold.score),
            "Right and wrong detections by score; the scale is logarithmic.",
        ),
    ]
    parts = [html.heading(SECTIONS["threshold"], "threshold")]
    if not is_right.any():
        return [*parts, html.text("p", "No detection is right, so no score is better than another.")]
    return [*parts, html.text("p", words), html.wide(html.grid(charts, 420))]


def describe_confusion(analysis: Analysis) -> list[str]:
    """Return what is taken for what: a matrix of few classes, the most confused pairs of many."""
    matrix, names = analysis.confusion(), list(analysis.class_names)
    words = (
        f"Detections with a score of {analysis.threshold.score:.2f} or more, matched to objects at IoU 0.5: "
        "first those of the same class, then what remains. Where nothing is, or an object is found already, "
        "a detection is false."
    )
    parts = [html.heading(SECTIONS["confusion"], "confusion"), html.text("p", words)]
    if len(names) <= LARGEST_MATRIX:
        sums = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        darkness = matrix / sums
        last = len(names)
        rows = [
            (
                name,
                [
                    ("" if i == j == last else f"{matrix[i, j]:,}", float(darkness[i, j]), i == j)
                    for j in range(last + 1)
                ],
            )
            for i, name in enumerate([*names, "nothing"])
        ]
        caption = "Rows: what is there. Columns: what it was called. Darker is a larger share of the row."
        return [*parts, html.heat_table(caption, ["", *names, "missed"], rows)]
    pairs = _confused_pairs(matrix, names)
    missed, false = int(matrix[:-1, -1].sum()), int(matrix[-1, :-1].sum())
    right = int(np.trace(matrix))
    summary = (
        f"{right:,} detections are right, {int(matrix[:-1, :-1].sum()) - right:,} have the wrong class, "
        f"{false:,} are false; {missed:,} objects are missed."
    )
    if not pairs:
        return [*parts, html.text("p", summary)]
    caption = "The pairs that are confused most, with the share of the first class's objects"
    return [
        *parts,
        html.text("p", summary),
        html.table(caption, ["object", "called", "times", "%"], pairs),
    ]


def _confused_pairs(matrix: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    swaps = matrix[:-1, :-1].copy()
    np.fill_diagonal(swaps, 0)
    objects = matrix[:-1].sum(axis=1)
    places = np.argsort(-swaps, axis=None, kind="stable")[:MOST_PAIRS]
    return [
        [names[i], names[j], f"{swaps[i, j]:,}", percent(swaps[i, j] / objects[i])]
        for i, j in zip(*(k.tolist() for k in np.unravel_index(places, swaps.shape)), strict=True)
        if swaps[i, j]
    ]


def describe_errors(errors: ErrorBreakdown) -> list[str]:
    """Return how much AP each kind of error costs."""
    top = max(*errors.gain.values(), 0.001)
    bars = [
        (
            kind,
            f"+{100 * max(errors.gain[kind], 0):.1f}",
            max(errors.gain[kind], 0) / top,
            f"{errors.counts[kind]:,} times: {KIND_MEANINGS[kind]}",
        )
        for kind in sorted(KINDS, key=lambda kind: -errors.gain[kind])
    ]
    words = (
        f"AP50 is {percent(errors.ap)}. Each bar is what it would gain if all errors of that kind alone were "
        "mended; the gains do not add up. All detections count, also those with low scores. The kinds are "
        "those of TIDE (Bolya et al., ECCV 2020). Without any wrong detection it would gain "
        f"{percent(max(errors.gain_false, 0))}, without any missed object "
        f"{percent(max(errors.gain_missed, 0))}."
    )
    return [html.heading(SECTIONS["errors"], "errors"), html.text("p", words), html.bars(bars)]


def _figure(chart: Chart, caption: str) -> str:
    return html.figure(chart.uri, caption, chart.size)


def _mean(values: np.ndarray) -> float:
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def _share(part: int, whole: int) -> float:
    return part / whole if whole else UNDEFINED
