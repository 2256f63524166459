"""The images of the report: where a detector does worst and best, and what is wrong there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from atss_core.apps.report.analysis import IGNORED, RIGHT, SWAPPED, WRONG, Analysis
from atss_core.apps.report.outcomes import (
    RIGHT_COLOR,
    SWAPPED_COLOR,
    WRONG_COLOR,
    draw_outcomes,
    to_uri,
)
from atss_core.visualization import html
from atss_core.visualization.boxes import Color

NUM_WORST, NUM_BEST = 8, 4
COLORS: dict[int, Color] = {RIGHT: RIGHT_COLOR, SWAPPED: SWAPPED_COLOR, WRONG: WRONG_COLOR}


@dataclass(frozen=True)
class ImageSource:
    """The images of a data set.

    Attributes:
        load: reads an image by its id; raises OSError or ValueError if it cannot.
        names: id -> what to call an image.
    """

    load: Callable[[int], Image.Image]
    names: Mapping[int, str]


@dataclass(frozen=True)
class ImageCounts:
    """What the detections that reach the threshold get right and wrong on each image, int64 (N,) each."""

    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Return wrong detections and missed objects together."""
        return self.wrong + self.missed

    @property
    def f1(self) -> np.ndarray:
        """Return the F1 of each image; NaN where there is neither an object nor a detection."""
        total = 2 * self.right + self.errors
        return np.divide(2 * self.right, total, out=np.full(len(total), np.nan), where=total > 0)


def count_by_image(analysis: Analysis) -> ImageCounts:
    """Count right and wrong detections and missed objects of each image; swapped ones are both."""
    shown = analysis.is_shown

    def count(images: np.ndarray) -> np.ndarray:
        return np.bincount(images, minlength=len(analysis.image_ids))

    outcome, gt_outcome = analysis.outcome, analysis.gt_outcome
    return ImageCounts(
        right=count(analysis.found.images[shown & (outcome == RIGHT)]),
        wrong=count(analysis.found.images[shown & np.isin(outcome, (WRONG, SWAPPED))]),
        missed=count(analysis.ground_truth.images[np.isin(gt_outcome, (WRONG, SWAPPED))]),
    )


def choose_worst(counts: ImageCounts) -> list[int]:
    """Return images with errors by rising F1, of equal ones those with more errors first."""
    rows = np.flatnonzero(counts.errors)
    return rows[np.lexsort((-counts.errors[rows], counts.f1[rows]))].tolist()


def choose_best(counts: ImageCounts) -> list[int]:
    """Return images with right detections by falling F1, of equal ones those with more objects first."""
    rows = np.flatnonzero(counts.right)
    return rows[np.lexsort((-counts.right[rows], -counts.f1[rows]))].tolist()


def describe_images(analysis: Analysis, source: ImageSource, sections: Mapping[str, str]) -> list[str]:
    """Return the two sections with images.

    Args:
        analysis: of the detections.
        source: of the images.
        sections: the titles of "worst" and "best".
    """
    counts = count_by_image(analysis)
    worst, unreadable = _show(analysis, source, choose_worst(counts), NUM_WORST, counts)
    taken = set(choose_worst(counts)[: NUM_WORST + len(unreadable)])
    best, others = _show(
        analysis, source, [i for i in choose_best(counts) if i not in taken], NUM_BEST, counts
    )
    note = _note_unreadable([*unreadable, *others])
    legend = html.legend(
        {
            "found, or right": _css(RIGHT_COLOR),
            "missed, or false": _css(WRONG_COLOR),
            "under another class": _css(SWAPPED_COLOR),
        }
    )
    how = (
        f"By F1 of the detections with a score of {analysis.threshold.score:.2f} or more, at IoU 0.5. "
        "Objects are on the first image of each pair, detections on the second."
    )
    return [
        html.heading(sections["worst"], "worst"),
        html.text("p", f"The lowest F1 and, of equal ones, the most errors. {how}"),
        legend,
        *(worst or [html.text("p", "No image has an error.")]),
        html.heading(sections["best"], "best"),
        html.text("p", "The highest F1 and, of equal ones, the most objects."),
        *(best or [html.text("p", "No other image has a right detection.")]),
        *note,
    ]


def _show(
    analysis: Analysis, source: ImageSource, ranked: Sequence[int], most: int, counts: ImageCounts
) -> tuple[list[str], list[str]]:
    """Return parts of the page for the first images that can be read, and what is wrong with others."""
    parts: list[str] = []
    unreadable: list[str] = []
    for image in ranked:
        if len(parts) == most or len(unreadable) > most:
            break
        try:
            pixels = source.load(analysis.image_ids[image])
        except (OSError, ValueError) as error:
            # A test that took hours must not fail for want of an illustration.
            unreadable.append(str(error).split(";", 1)[0])
            continue
        parts.append(_pair(analysis, source, image, pixels, float(counts.f1[image])))
    return parts, unreadable


def _pair(analysis: Analysis, source: ImageSource, image: int, pixels: Image.Image, f1: float) -> str:
    names, ground_truth, found = analysis.class_names, analysis.ground_truth, analysis.found
    objects = np.flatnonzero((ground_truth.images == image) & ~ground_truth.is_crowd)
    shown = np.flatnonzero((found.images == image) & analysis.is_shown & (analysis.outcome != IGNORED))
    # What is wrong on top.
    objects = objects[np.argsort(-analysis.gt_outcome[objects], kind="stable")]
    shown = shown[np.argsort(-analysis.outcome[shown], kind="stable")]
    before = draw_outcomes(
        pixels,
        ground_truth.boxes[objects],
        [names[k] for k in ground_truth.classes[objects]],
        [COLORS[outcome] for outcome in analysis.gt_outcome[objects].tolist()],
    )
    after = draw_outcomes(
        pixels,
        found.boxes[shown],
        [f"{names[found.classes[i]]} {found.scores[i]:.2f}" for i in shown.tolist()],
        [COLORS[outcome] for outcome in analysis.outcome[shown].tolist()],
    )
    name = source.names[analysis.image_ids[image]]
    words = _what_is_wrong(analysis, objects, shown)
    figures = [
        html.figure(to_uri(before), _count(len(objects), "object"), before.size),
        html.figure(to_uri(after), words, after.size),
    ]
    return html.text("h3", f"{name}: F1 {100 * f1:.0f}") + html.grid(figures, 300)


def _what_is_wrong(analysis: Analysis, objects: np.ndarray, shown: np.ndarray) -> str:
    names, ground_truth, found = analysis.class_names, analysis.ground_truth, analysis.found
    missed = objects[analysis.gt_outcome[objects] == WRONG]
    false = shown[analysis.outcome[shown] == WRONG]
    swapped = shown[analysis.outcome[shown] == SWAPPED]
    num_right = int(np.count_nonzero(analysis.outcome[shown] == RIGHT))
    swaps = [
        f"{names[ground_truth.classes[analysis.swapped[i]]]} taken for {names[found.classes[i]]}"
        for i in swapped.tolist()
    ]
    parts = [f"{num_right} right"]
    for rows, word, details in (
        (missed, "missed", [names[k] for k in ground_truth.classes[missed]]),
        (false, "false", [names[k] for k in found.classes[false]]),
        (swapped, "of the wrong class", swaps),
    ):
        if len(rows):
            parts.append(f"{len(rows)} {word} ({_list(details)})")
    return "; ".join(parts)


def _list(words: Sequence[str], most: int = 5) -> str:
    counted = Counter(words).most_common()
    shown = [word if times == 1 else f"{times} x {word}" for word, times in counted[:most]]
    return ", ".join(shown) + (", ..." if len(counted) > most else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _note_unreadable(errors: Sequence[str]) -> list[str]:
    if not errors:
        return []
    return [html.text("p", f"{_count(len(errors), 'image')} could not be read and is left out: {errors[0]}")]


def _css(color: Color) -> str:
    return "rgb({}, {}, {})".format(*color)
