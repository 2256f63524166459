"""Draw what a detector got right and wrong on an image: its objects, and its detections."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from atss_core.visualization.boxes import Color, Mark, Rectangle, draw_marks

# Okabe and Ito's palette, which colour-blind readers can tell apart.
RIGHT_COLOR, SWAPPED_COLOR, WRONG_COLOR = (0, 114, 178), (204, 121, 167), (213, 94, 0)
SIDE = 440  # pixels of the longer side
LINE_WIDTH = 2
QUALITIES = (80, 60, 40, 20)  # of JPEG, the first that is small enough
MOST_BYTES = 75_000  # of an image


def draw_outcomes(
    image: Image.Image, boxes: np.ndarray, texts: Sequence[str], colors: Sequence[Color]
) -> Image.Image:
    """Draw boxes with texts, the first on top.

    Args:
        image: the image.
        boxes: (x, y, width, height) in its pixels, shape (B, 4).
        texts: of the boxes.
        colors: of the boxes.
    """
    scale = SIDE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) * scale
    corners = np.clip(corners.round().astype(int), 0, [*size, *size])
    marks = [
        Mark(Rectangle(left, top, max(left, right - 1), max(top, bottom - 1)), text, color)
        for (left, top, right, bottom), text, color in zip(corners.tolist(), texts, colors, strict=True)
    ]
    pen = ImageDraw.Draw(canvas)
    for mark in reversed(marks):
        left, top, right, bottom = mark.rectangle
        # A white rim keeps the colours apart from the image behind them.
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=LINE_WIDTH + 2)
        pen.rectangle(mark.rectangle, outline=mark.color, width=LINE_WIDTH)
    draw_marks(canvas, marks)
    return canvas


def to_uri(image: Image.Image) -> str:
    """Return an image as a data URI, of bounded size as far as that can be had."""
    content = b""
    for quality in QUALITIES:
        stream = io.BytesIO()
        # Subsampled chroma would smear thin coloured lines.
        image.save(stream, format="JPEG", quality=quality, subsampling=0, optimize=True)
        content = stream.getvalue()
        if len(content) <= MOST_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
