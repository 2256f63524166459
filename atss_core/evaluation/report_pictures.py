"""The pictures of the report: where a detector does worst and best, and what is wrong there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from atss_core.evaluation.analysis import IGNORED, RIGHT, SWAPPED, WRONG, Analysis
from atss_core.utils import html
from atss_core.utils.outcome_pictures import (
    RIGHT_COLOR,
    SWAPPED_COLOR,
    WRONG_COLOR,
    draw_outcomes,
    to_uri,
)
from atss_core.utils.visualize import Color

NUM_WORST, NUM_BEST = 8, 4
COLORS: dict[int, Color] = {RIGHT: RIGHT_COLOR, SWAPPED: SWAPPED_COLOR, WRONG: WRONG_COLOR}


@dataclass(frozen=True)
class PictureSource:
    """The pictures of a data set.

    Attributes:
        load: reads a picture by its id; raises OSError or ValueError if it cannot.
        names: id -> what to call a picture.
    """

    load: Callable[[int], Image.Image]
    names: Mapping[int, str]


@dataclass(frozen=True)
class PictureCounts:
    """What the detections that reach the threshold get right and wrong on each picture, int64 (N,) each."""

    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Return wrong detections and missed objects together."""
        return self.wrong + self.missed

    @property
    def f1(self) -> np.ndarray:
        """Return the F1 of each picture; NaN where there is neither an object nor a detection."""
        total = 2 * self.right + self.errors
        return np.divide(2 * self.right, total, out=np.full(len(total), np.nan), where=total > 0)


def count_by_picture(analysis: Analysis) -> PictureCounts:
    """Count right and wrong detections and missed objects of each picture; swapped ones are both."""
    shown = analysis.is_shown

    def count(images: np.ndarray) -> np.ndarray:
        return np.bincount(images, minlength=len(analysis.image_ids))

    outcome, truth_outcome = analysis.outcome, analysis.truth_outcome
    return PictureCounts(
        right=count(analysis.found.images[shown & (outcome == RIGHT)]),
        wrong=count(analysis.found.images[shown & np.isin(outcome, (WRONG, SWAPPED))]),
        missed=count(analysis.truths.images[np.isin(truth_outcome, (WRONG, SWAPPED))]),
    )


def choose_worst(counts: PictureCounts) -> list[int]:
    """Return pictures with errors by rising F1, of equal ones those with more errors first."""
    rows = np.flatnonzero(counts.errors)
    return rows[np.lexsort((-counts.errors[rows], counts.f1[rows]))].tolist()


def choose_best(counts: PictureCounts) -> list[int]:
    """Return pictures with right detections by falling F1, of equal ones those with more objects first."""
    rows = np.flatnonzero(counts.right)
    return rows[np.lexsort((-counts.right[rows], -counts.f1[rows]))].tolist()


def describe_pictures(analysis: Analysis, source: PictureSource, sections: Mapping[str, str]) -> list[str]:
    """Return the two sections with pictures.

    Args:
        analysis: of the detections.
        source: of the pictures.
        sections: the titles of "worst" and "best".
    """
    counts = count_by_picture(analysis)
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
        "Objects are on the first picture of each pair, detections on the second."
    )
    return [
        html.heading(sections["worst"], "worst"),
        html.text("p", f"The lowest F1 and, of equal ones, the most errors. {how}"),
        legend,
        *(worst or [html.text("p", "No picture has an error.")]),
        html.heading(sections["best"], "best"),
        html.text("p", "The highest F1 and, of equal ones, the most objects."),
        *(best or [html.text("p", "No other picture has a right detection.")]),
        *note,
    ]


def _show(
    analysis: Analysis, source: PictureSource, ranked: Sequence[int], most: int, counts: PictureCounts
) -> tuple[list[str], list[str]]:
    """Return parts of the page for the first pictures that can be read, and what is wrong with others."""
    parts: list[str] = []
    unreadable: list[str] = []
    for image in ranked:
        if len(parts) == most or len(unreadable) > most:
            break
        try:
            picture = source.load(analysis.image_ids[image])
        except (OSError, ValueError) as error:
            # A test that took hours must not fail for want of an illustration.
            unreadable.append(str(error).split(";", 1)[0])
            continue
        parts.append(_pair(analysis, source, image, picture, float(counts.f1[image])))
    return parts, unreadable


def _pair(analysis: Analysis, source: PictureSource, image: int, picture: Image.Image, f1: float) -> str:
    names, truths, found = analysis.class_names, analysis.truths, analysis.found
    objects = np.flatnonzero((truths.images == image) & ~truths.is_crowd)
    shown = np.flatnonzero((found.images == image) & analysis.is_shown & (analysis.outcome != IGNORED))
    # What is wrong on top.
    objects = objects[np.argsort(-analysis.truth_outcome[objects], kind="stable")]
    shown = shown[np.argsort(-analysis.outcome[shown], kind="stable")]
    before = draw_outcomes(
        picture,
        truths.boxes[objects],
        [names[k] for k in truths.classes[objects]],
        [COLORS[outcome] for outcome in analysis.truth_outcome[objects].tolist()],
    )
    after = draw_outcomes(
        picture,
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
    names, truths, found = analysis.class_names, analysis.truths, analysis.found
    missed = objects[analysis.truth_outcome[objects] == WRONG]
    false = shown[analysis.outcome[shown] == WRONG]
    swapped = shown[analysis.outcome[shown] == SWAPPED]
    num_right = int(np.count_nonzero(analysis.outcome[shown] == RIGHT))
    swaps = [
        f"{names[truths.classes[analysis.swapped[i]]]} taken for {names[found.classes[i]]}"
        for i in swapped.tolist()
    ]
    parts = [f"{num_right} right"]
    for rows, word, details in (
        (missed, "missed", [names[k] for k in truths.classes[missed]]),
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
    return [
        html.text("p", f"{_count(len(errors), 'picture')} could not be read and is left out: {errors[0]}")
    ]


def _css(color: Color) -> str:
    return "rgb({}, {}, {})".format(*color)
