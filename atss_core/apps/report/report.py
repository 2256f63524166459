"""The report of an evaluation: one HTML page that opens from disk and holds everything."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from atss_core.apps.report.analysis import CORRECT, IGNORED, Analysis, analyze, score_curves
from atss_core.apps.report.charts import (
    Chart,
    draw_precision_recall,
    draw_precision_recall_of_classes,
    draw_scores,
    draw_thresholds,
)
from atss_core.apps.report.images import COLORS, ImageSource, show_examples
from atss_core.engine.evaluate import Evaluated
from atss_core.evaluation.backends import AREAS, IOU_50, IOU_75, Measured
from atss_core.evaluation.coco import CocoEvaluator
from atss_core.evaluation.metrics import UNDEFINED, CocoMetrics, mean_defined, percent
from atss_core.evaluation.voc import VocMetrics
from atss_core.visualization.page import render

TEMPLATE = Path(__file__).with_name("templates") / "report.html"
MAX_MATRIX = 12  # classes of a readable confusion matrix
MAX_PAIRS = 15  # of confused classes
MAX_CHARTS = 12  # of classes


@dataclass(frozen=True)
class ReportInput:
    """The contents of a report.

    Attributes:
        name: of the dataset.
        evaluator: after ``evaluate``.
        metrics: the result of ``evaluate``.
        images: reads images and knows their names.
        voc_metrics: for datasets in VOC format.
        facts: about the run, such as the command: name -> text.
        configuration: all of it, as text.
        warnings: about the numbers, a paragraph each.
    """

    name: str
    evaluator: CocoEvaluator
    metrics: CocoMetrics
    images: ImageSource
    voc_metrics: VocMetrics | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""
    warnings: Sequence[str] = ()


def report_evaluation(
    cfg: CfgNode, facts: Mapping[str, str], evaluated: Evaluated, warnings: Sequence[str] = ()
) -> str:
    """Build the report of an evaluated dataset.

    Args:
        cfg: the configuration.
        facts: of the run, such as the software, by name.
        evaluated: the dataset with its metrics.
    """
    dataset = evaluated.dataset
    indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    names = {i: str(dataset.image_info(index)["file_name"]) for i, index in indices.items()}
    program, *arguments = sys.argv
    start = ["python", program] if program.endswith(".py") else [Path(program).name]
    return build_report(
        ReportInput(
            dataset.name,
            evaluated.evaluator,
            evaluated.metrics,
            ImageSource(lambda image_id: dataset.load_image(indices[image_id]), names),
            evaluated.voc_metrics,
            facts={
                "command": shlex.join([*start, *arguments]),
                **facts,
                "time": str(evaluated.timing),
                "data": f"{dataset.path} ({dataset.format} format)",
                "date": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
            },
            configuration=cfg.dump(),
            warnings=warnings,
        )
    )


def build_report(given: ReportInput) -> str:
    """Return the page.

    Raises:
        ValueError: if nothing was measured.
    """
    evaluator, measured = given.evaluator, given.evaluator.measured
    if measured is None:
        raise ValueError("evaluator: expected one that has measured, got one without. Call evaluate() first.")
    # Classes by ascending id, as in the measured arrays.
    names = dict(zip(evaluator.category_ids, evaluator.class_names, strict=True))
    analysis = analyze(
        evaluator.ground_truth,
        evaluator.results,
        evaluator.tested_ids,
        measured.category_ids,
        [names[i] for i in measured.category_ids],
    )
    metrics = dict(given.metrics.overall)
    if given.voc_metrics is not None:
        voc = given.voc_metrics.overall
        metrics |= {"VOC 2007": voc["AP50_11point"], "VOC 2010": voc["AP50_area"]}
    areas = np.array([entry["area"] for entry in evaluator.ground_truth if not entry["iscrowd"]])
    tide = analysis.tide_errors()
    worst, best, unreadable = show_examples(analysis, given.images)
    return render(
        TEMPLATE,
        title=f"Evaluation on {given.name}",
        given=given,
        analysis=analysis,
        num_gt=len(areas),
        num_crowds=int(np.count_nonzero(analysis.gt.is_crowd)),
        threshold=analysis.threshold,
        metrics=metrics,
        size_rows=_size_rows(given.metrics, areas),
        class_rows=_class_rows(analysis, measured),
        curves=_curve_charts(analysis, measured),
        scores=_score_charts(analysis),
        confusion=_confusion(analysis),
        tide=tide,
        largest_gain=max(0.001, *(tide["delta_ap"][kind] for kind in tide["counts"])),
        colors=["rgb({}, {}, {})".format(*color) for color in COLORS.values()],
        worst=worst,
        best=best,
        unreadable=unreadable,
        facts={**given.facts, "measured with": measured.backend},
        percent=percent,
    )


def _size_rows(metrics: CocoMetrics, areas: np.ndarray) -> list[list[str]]:
    small, medium = (int(np.count_nonzero(areas <= side**2)) for side in (32, 96))
    counts = (len(areas), small, medium - small, len(areas) - medium)
    overall = metrics.overall
    return [
        [size, f"{count:,}", percent(overall[f"AP{suffix}"]), percent(overall[f"AR{suffix or 100}"])]
        for size, suffix, count in zip(AREAS, ("", "s", "m", "l"), counts, strict=True)
    ]


def _class_rows(analysis: Analysis, measured: Measured) -> list[list[str]]:
    """Return name, objects, AP, AP50, AP75, AR, precision and recall of the classes by falling AP."""
    confusion, num_gt = analysis.confusion(), analysis.num_gt
    num_correct, num_detections = np.diag(confusion)[:-1], confusion[:, :-1].sum(axis=0)
    precision = measured.precision[..., 0]
    ap = [mean_defined(precision[:, :, k]) for k in range(len(num_gt))]
    rows = []
    for k in sorted(range(len(num_gt)), key=lambda k: -ap[k]):
        values = (
            ap[k],
            mean_defined(precision[IOU_50, :, k]),
            mean_defined(precision[IOU_75, :, k]),
            mean_defined(measured.recall[:, k, 0]),
            *(num_correct[k] / n if n else UNDEFINED for n in (num_detections[k], num_gt[k])),
        )
        rows.append([analysis.class_names[k], f"{num_gt[k]:,}", *map(percent, values)])
    return rows


def _curve_charts(analysis: Analysis, measured: Measured) -> tuple[Chart, Chart, str] | None:
    """Draw precision over recall of all classes together and of each, with a caption of the latter."""
    precision = measured.precision[:, :, :, 0]
    defined = np.flatnonzero(precision[0, 0] > UNDEFINED)
    if not len(defined):
        return None
    precision = precision[:, :, defined]
    overall = {
        "IoU 0.5": precision[IOU_50].mean(axis=1),
        "IoU 0.75": precision[IOU_75].mean(axis=1),
        "mean of IoU 0.5 to 0.95": precision.mean(axis=(0, 2)),
    }
    order = np.argsort(-precision.mean(axis=(0, 1)), kind="stable")
    caption = "The classes, the best first."
    if len(order) > MAX_CHARTS:
        half = MAX_CHARTS // 2
        order = np.r_[order[:half], order[-half:]]
        caption = f"The {half} best classes and the {half} worst."
    per_class = [
        (analysis.class_names[defined[k]], precision[IOU_50, :, k], precision[IOU_75, :, k])
        for k in order.tolist()
    ]
    return draw_precision_recall(overall), draw_precision_recall_of_classes(per_class), caption


def _score_charts(analysis: Analysis) -> tuple[Chart, Chart] | None:
    """Draw precision, recall and F1 over the score, and histograms of the scores."""
    counted = analysis.outcome != IGNORED
    scores, is_correct = analysis.detections.scores[counted], analysis.outcome[counted] == CORRECT
    if not is_correct.any():
        return None
    curves = score_curves(scores, is_correct, int(analysis.num_gt.sum()))
    best = analysis.threshold.score
    histograms = draw_scores(scores[is_correct], scores[~is_correct], best)
    return draw_thresholds(*curves, best), histograms


def _confusion(analysis: Analysis) -> dict[str, Any]:
    """Return the rows of the confusion matrix of few classes, the most confused pairs of many."""
    matrix, names = analysis.confusion(), list(analysis.class_names)
    background = len(names)
    if background <= MAX_MATRIX:
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        rows = [
            (name, [(f"{matrix[i, j]:,}", float(shares[i, j]), i == j) for j in range(background + 1)])
            for i, name in enumerate([*names, "background"])
        ]
        rows[-1][1][-1] = ("", 0.0, True)
        return {"header": ["", *names, "missed"], "rows": rows}
    between = matrix[:-1, :-1]
    confused = between - np.diag(np.diag(between))
    order = np.argsort(-confused, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [
        [names[i], names[j], f"{confused[i, j]:,}", percent(confused[i, j] / matrix[i].sum())]
        for i, j in zip(*(k.tolist() for k in np.unravel_index(order, confused.shape)), strict=True)
        if confused[i, j]
    ]
    return {
        "pairs": pairs,
        "correct": int(np.trace(between)),
        "wrong_class": int(confused.sum()),
        "false": int(matrix[-1, :-1].sum()),
        "missed": int(matrix[:-1, -1].sum()),
    }
