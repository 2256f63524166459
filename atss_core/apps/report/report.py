"""The report of a test: one HTML page that opens from disk and has everything in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from atss_core.apps.report.analysis import Analysis, analyze
from atss_core.apps.report.images import ImageSource, describe_images
from atss_core.apps.report.sections import (
    SECTIONS,
    describe_classes,
    describe_confusion,
    describe_curves,
    describe_errors,
    describe_threshold,
)
from atss_core.apps.report.tide import break_down
from atss_core.evaluation.backends import AREAS, Measured
from atss_core.evaluation.coco import CocoEvaluator
from atss_core.evaluation.metrics import CocoMetrics, percent
from atss_core.evaluation.voc import VocMetrics
from atss_core.visualization import html

MEANINGS = {
    "AP": "mean over IoU 0.5, 0.55, ..., 0.95 and over the classes",
    "AP50": "boxes count from IoU 0.5 on: is the object found?",
    "AP75": "boxes count from IoU 0.75 on: is the box tight?",
    "APs": "small objects, up to 32 x 32 pixels",
    "APm": "medium objects, up to 96 x 96 pixels",
    "APl": "large objects",
    "AR1": "objects found with 1 detection of a class in an image, mean over the IoUs",
    "AR10": "with 10",
    "AR100": "with 100",
    "ARs": "small objects, with 100",
    "ARm": "medium objects, with 100",
    "ARl": "large objects, with 100",
}


@dataclass(frozen=True)
class ReportInput:
    """What a report is made of.

    Attributes:
        name: of the data set.
        evaluator: after ``evaluate``.
        metrics: what that has returned.
        images: reads images and knows their names.
        voc_metrics: for data sets in the layout of VOC.
        facts: where the report comes from, such as the command: name -> text.
        configuration: the whole, as text.
        warnings: what to know when the numbers are read, a paragraph each.
    """

    name: str
    evaluator: CocoEvaluator
    metrics: CocoMetrics
    images: ImageSource
    voc_metrics: VocMetrics | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""
    warnings: Sequence[str] = ()


def build_report(given: ReportInput) -> str:
    """Return the page.

    Raises:
        ValueError: if nothing was measured.
    """
    evaluator, measured = given.evaluator, given.evaluator.measured
    if measured is None:
        raise ValueError(
            "expected an evaluator that has measured, got one that has not; call evaluate() first"
        )
    # Classes by ascending id, as the measured arrays are.
    names = dict(zip(evaluator.category_ids, evaluator.class_names, strict=True))
    analysis = analyze(
        evaluator.ground_truth,
        evaluator.results,
        evaluator.tested_ids,
        measured.category_ids,
        [names[i] for i in measured.category_ids],
    )
    areas = np.array([truth["area"] for truth in evaluator.ground_truth if not truth["iscrowd"]])
    errors = break_down(analysis)
    parts = [
        *_numbers(given, analysis, areas),
        *describe_classes(analysis, measured),
        *describe_curves(analysis, measured),
        *describe_threshold(analysis),
        *describe_confusion(analysis),
        *describe_errors(errors),
        *describe_images(analysis, given.images, SECTIONS),
        *_origin(given, measured),
    ]
    return html.page(f"Test on {given.name}", [html.contents(SECTIONS), *parts])


def _numbers(given: ReportInput, analysis: Analysis, areas: np.ndarray) -> list[str]:
    overall, threshold = given.metrics.overall, analysis.threshold
    cards = [
        ("AP", percent(overall["AP"]), "mean over IoU 0.5 to 0.95"),
        ("AP50", percent(overall["AP50"]), "at IoU 0.5"),
        ("AP75", percent(overall["AP75"]), "at IoU 0.75"),
        ("best F1", percent(threshold.f1), f"from a score of {threshold.score:.2f} on"),
        ("precision", percent(threshold.precision), "of the detections from there on are right"),
        ("recall", percent(threshold.recall), "of the objects are found by them"),
    ]
    num_crowds = int(np.count_nonzero(analysis.ground_truth.is_crowd))
    words = (
        f"{len(analysis.image_ids):,} images, {len(areas):,} objects of {len(analysis.class_names)} "
        f"classes, {len(analysis.found):,} detections. Numbers are in percent unless they count something."
    )
    if num_crowds:
        words += f" {num_crowds:,} crowds, ignore regions or difficult objects count neither way."
    rows = [[name, percent(value), MEANINGS[name]] for name, value in overall.items()]
    if given.voc_metrics is not None:
        voc = given.voc_metrics.overall
        rows += [
            ["VOC 2007", percent(voc["AP50_11point"]), "AP at IoU 0.5 by the 11 points of VOC 2007"],
            ["VOC 2010", percent(voc["AP50_area"]), "AP at IoU 0.5 by the area of VOC 2010"],
        ]
    small, medium = (int(np.count_nonzero(areas <= side**2)) for side in (32, 96))
    counts = (len(areas), small, medium - small, len(areas) - medium)
    sizes = [
        [size, f"{count:,}", percent(overall[f"AP{suffix}"]), percent(overall[f"AR{suffix or 100}"])]
        for size, suffix, count in zip(AREAS, ("", "s", "m", "l"), counts, strict=True)
    ]
    return [
        html.heading(SECTIONS["numbers"], "numbers"),
        html.cards(cards),
        html.text("p", words),
        *(html.text("p", warning) for warning in given.warnings),
        html.table("The twelve numbers of COCO", ["", "%", "meaning"], rows, words=True),
        html.table("By size of the object", ["size", "objects", "AP", "AR"], sizes),
    ]


def _origin(given: ReportInput, measured: Measured) -> list[str]:
    parts = [
        html.heading(SECTIONS["origin"], "origin"),
        html.facts({**given.facts, "measured with": measured.backend}),
    ]
    if given.configuration:
        parts.append(html.folded("Configuration", [html.text("pre", given.configuration)]))
    return parts
