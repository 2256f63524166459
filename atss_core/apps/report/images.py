"""Images of the report: those with the lowest and the highest F1, with ground truth and detections."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from atss_core.apps.report.analysis import CORRECT, UNMATCHED, WRONG_CLASS, Analysis
from atss_core.visualization.boxes import Color, Mark, Rectangle, draw_marks

NUM_WORST, NUM_BEST = 8, 4
# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS: dict[int, Color] = {CORRECT: (0, 114, 178), WRONG_CLASS: (204, 121, 167), UNMATCHED: (213, 94, 0)}
SIDE = 440  # pixels of the longer side
LINE_WIDTH = 2
QUALITIES = (80, 60, 40, 20)  # of JPEG, the first that is small enough
MAX_BYTES = 75_000  # of an image


@dataclass(frozen=True)
class ImageSource:
    """The images of a dataset.

    Attributes:
        load: reads an image by its id; raises OSError or ValueError if it cannot.
        names: id -> name for the report.
    """

    load: Callable[[int], Image.Image]
    names: Mapping[int, str]


Figure = tuple[str, str, tuple[int, int]]  # data URI, caption, (width, height) in pixels
Example = tuple[str, Figure, Figure]  # heading, ground truth, detections


def show_examples(analysis: Analysis, source: ImageSource) -> tuple[list[Example], list[Example], list[str]]:
    """Draw the images with the lowest and the highest F1; no image is shown twice.

    Returns:
        Both lists, and the errors of unreadable images, which are skipped.
    """
    f1, worst, best = analysis.rank_images()
    errors: list[str] = []
    tried: set[int] = set()

    def show(images: Sequence[int], limit: int) -> list[Example]:
        shown: list[Example] = []
        num_errors = len(errors)
        for image in (i for i in images if i not in tried):
            if len(shown) == limit or len(errors) - num_errors > limit:
                break
            tried.add(image)
            image_id = analysis.image_ids[image]
            try:
                pixels = source.load(image_id)
            except (OSError, ValueError) as error:
                # A missing illustration must not fail an evaluation of hours.
                errors.append(str(error).split(";", 1)[0])
                continue
            heading = f"{source.names[image_id]}: F1 {100 * f1[image]:.0f}"
            shown.append((heading, *_figures(analysis, image, pixels)))
        return shown

    return show(worst, NUM_WORST), show(best, NUM_BEST), errors


def _figures(analysis: Analysis, image: int, pixels: Image.Image) -> tuple[Figure, Figure]:
    """Draw the ground truth and the detections of an image."""
    names, gt, detections = analysis.class_names, analysis.gt, analysis.detections
    gt_rows = np.flatnonzero((gt.images == image) & ~gt.is_crowd)
    rows = np.flatnonzero((detections.images == image) & analysis.is_shown)
    # Errors on top.
    gt_rows = gt_rows[np.argsort(-analysis.gt_outcome[gt_rows], kind="stable")]
    rows = rows[np.argsort(-analysis.outcome[rows], kind="stable")]
    gt_texts = [names[k] for k in gt.classes[gt_rows]]
    texts = [f"{names[detections.classes[i]]} {detections.scores[i]:.2f}" for i in rows.tolist()]
    gt_image = _draw(pixels, gt.xywh[gt_rows], gt_texts, analysis.gt_outcome[gt_rows])
    detected_image = _draw(pixels, detections.xywh[rows], texts, analysis.outcome[rows])
    gt_caption = f"{len(gt_rows)} object{'s' * (len(gt_rows) != 1)}"
    return (
        (_to_uri(gt_image), gt_caption, gt_image.size),
        (_to_uri(detected_image), _describe(analysis, gt_rows, rows), detected_image.size),
    )


def _describe(analysis: Analysis, gt_rows: np.ndarray, rows: np.ndarray) -> str:
    """Count correct detections and errors of each kind, with their classes."""
    names, gt_classes, classes = analysis.class_names, analysis.gt.classes, analysis.detections.classes
    outcome = analysis.outcome[rows]
    missed = [names[k] for k in gt_classes[gt_rows[analysis.gt_outcome[gt_rows] == UNMATCHED]]]
    false = [names[k] for k in classes[rows[outcome == UNMATCHED]]]
    confused = [
        f"{names[gt_classes[analysis.matched_idx[i]]]} predicted as {names[classes[i]]}"
        for i in rows[outcome == WRONG_CLASS].tolist()
    ]
    sections = [f"{np.count_nonzero(outcome == CORRECT)} correct"]
    for details, text in ((missed, "missed"), (false, "false"), (confused, "of the wrong class")):
        if details:
            sections.append(f"{len(details)} {text} ({_summarize(details)})")
    return "; ".join(sections)


def _summarize(details: Sequence[str], limit: int = 5) -> str:
    counted = Counter(details).most_common()
    shown = [detail if times == 1 else f"{times} x {detail}" for detail, times in counted[:limit]]
    return ", ".join(shown) + (", ..." if len(counted) > limit else "")


def _draw(image: Image.Image, xywh: np.ndarray, texts: Sequence[str], outcomes: np.ndarray) -> Image.Image:
    """Draw boxes, in pixels of the image, with texts and the colours of their outcomes, the first on top."""
    scale = SIDE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    corners = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]) * scale
    corners = np.clip(corners.round().astype(int), 0, [*size, *size])
    marks = [
        Mark(Rectangle(left, top, max(left, right - 1), max(top, bottom - 1)), text, COLORS[outcome])
        for (left, top, right, bottom), text, outcome in zip(
            corners.tolist(), texts, outcomes.tolist(), strict=True
        )
    ]
    pen = ImageDraw.Draw(canvas)
    for rectangle, _, color in reversed(marks):
        left, top, right, bottom = rectangle
        # A white rim keeps the colours apart from the image behind them.
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=LINE_WIDTH + 2)
        pen.rectangle(rectangle, outline=color, width=LINE_WIDTH)
    draw_marks(canvas, marks)
    return canvas


def _to_uri(image: Image.Image) -> str:
    """Return an image as a JPEG data URI, within ``MAX_BYTES`` if the lowest quality allows it."""
    content = b""
    for quality in QUALITIES:
        stream = io.BytesIO()
        # Subsampled chroma would smear thin coloured lines.
        image.save(stream, format="JPEG", quality=quality, subsampling=0, optimize=True)
        content = stream.getvalue()
        if len(content) <= MAX_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
