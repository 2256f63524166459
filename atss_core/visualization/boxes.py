"""Boxes with labels drawn on images, and grids of images, by Pillow."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from atss_core.structures import BoxList
from atss_core.utils.files import atomic_write
from atss_core.visualization.fonts import Font, with_font

Color = tuple[int, int, int]

PAPER, INK, FAINT_INK = (255, 255, 255), (33, 37, 41), (108, 117, 125)
CAPTION_SIZE, TITLE_SIZE, GAP = 15, 22, 8
LONGEST_SIDE = 2048  # pixels of an enlarged image
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class Rectangle(NamedTuple):
    """A rectangle in pixels, the last row and column included, as Pillow draws it."""

    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: Rectangle) -> bool:
        """Tell whether the two share a pixel."""
        return (
            max(self.left, other.left) <= min(self.right, other.right)
            and max(self.top, other.top) <= min(self.bottom, other.bottom)
        )  # fmt: skip


class Mark(NamedTuple):
    """A box to draw."""

    rectangle: Rectangle
    text: str
    color: Color


def draw_boxes(
    image: Image.Image,
    result: BoxList,
    class_names: Sequence[str],
    score_threshold: float = 0.0,
    scale: float = 1.0,
) -> Image.Image:
    """Draw detections or ground truth on an RGB copy of an image, enlarged by ``scale``.

    Args:
        image: the image.
        result: boxes with labels 1..C, scores shown if present; in pixels of the image at any size, such as
            the network input.
        class_names: the name of label l is ``class_names[l - 1]``.
        score_threshold: boxes with a lower score are left out.
        scale: applied before drawing, so that lines and text are crisp; see ``readable_scale``.

    Raises:
        ValueError: if there are no labels or a label has no name.
    """
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    canvas = image.convert("RGB")
    if canvas.size != size:
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    result = result.to("cpu").resize((canvas.height, canvas.width)).clip()
    draw_marks(canvas, list(_marks(result, class_names, score_threshold)))
    return canvas


def image_grid(rows: Sequence[Sequence[tuple[str, Image.Image]]], title: str = "") -> Image.Image:
    """Arrange images with captions in a grid.

    Args:
        rows: rows of (caption, image), for example a pair ("ground truth", ...), ("detections", ...).
            Columns are as wide as their widest image, rows as high as their highest.
        title: a line above the grid.

    Raises:
        ValueError: if there is no image.
    """
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError("expected at least one image for an image grid, got none; give (caption, image)")
    num_columns = max(map(len, rows))
    widths = [max(row[i][1].width for row in rows if i < len(row)) for i in range(num_columns)]
    heights = [max(image.height for _, image in row) for row in rows]
    caption_height = round(CAPTION_SIZE * 1.5)
    top = GAP + (round(TITLE_SIZE * 1.6) if title else 0)

    grid_height = top + sum(height + caption_height + GAP for height in heights)
    grid = Image.new("RGB", (GAP + sum(width + GAP for width in widths), grid_height), PAPER)
    pen = ImageDraw.Draw(grid)
    _write(pen, (GAP, GAP), title, TITLE_SIZE, grid.width - 2 * GAP, INK)
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for (caption, image), width in zip(row, widths, strict=False):
            _write(pen, (left, top), caption, CAPTION_SIZE, width, FAINT_INK)
            grid.paste(image, (left, top + caption_height))
            left += width + GAP
        top += height + caption_height + GAP
    return grid


def readable_scale(image_size: tuple[int, int], short_side: int = 384) -> int:
    """Return the smallest whole factor that brings the short side of a (height, width) to ``short_side``.

    The long side of a thin image is not enlarged beyond ``LONGEST_SIDE``.
    """
    return max(1, min(math.ceil(short_side / min(image_size)), LONGEST_SIDE // max(image_size)))


def class_color(label: int) -> Color:
    """Return the color of a label, always the same; neighbouring labels differ most.

    Steps of the golden ratio spread any number of hues over the circle; brightness changes every few labels.
    """
    saturation, value = ((0.85, 0.95), (0.65, 1.0), (0.95, 0.78))[label // 9 % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def save_image(image: Image.Image, file: str | Path) -> None:
    """Write a PNG, a JPEG or what else the suffix says, and make its folder; raises as ``atomic_write``."""
    file, content = Path(file), io.BytesIO()  # Pillow would hide why a disk refuses, and read what it writes
    image_format = Image.registered_extensions().get(file.suffix.lower())
    if image_format is None:
        raise ValueError(f"{file}: expected a name such as a.png or a.jpg, got the ending {file.suffix!r}")
    # Subsampled chroma would smear thin coloured lines. PNG ignores both settings.
    image.save(content, image_format, quality=92, subsampling=0)
    with atomic_write(file) as stream:
        stream.write(content.getbuffer())


def _marks(result: BoxList, class_names: Sequence[str], score_threshold: float) -> Iterator[Mark]:
    """Yield the boxes to draw, best scores first."""
    if result.labels is None:
        raise ValueError(f"expected boxes with labels, got {result}; give its labels, 1 for a single class")
    boxes, labels = result.boxes.tolist(), result.labels.tolist()
    scores = [None] * len(boxes) if result.scores is None else result.scores.tolist()
    for i in sorted(range(len(boxes)), key=lambda i: -(scores[i] or 0)):
        label, score = labels[i], scores[i]
        if score is not None and score < score_threshold:
            break
        if not 1 <= label <= len(class_names):
            raise ValueError(
                f"expected labels in 1..{len(class_names)}, got {label}; give all names of the model"
            )
        text = class_names[label - 1] + ("" if score is None else f" {score:.2f}")
        left, top, right, bottom = map(round, boxes[i])
        yield Mark(Rectangle(left, top, max(left, right), max(top, bottom)), text, class_color(label))


def draw_marks(canvas: Image.Image, marks: Sequence[Mark]) -> None:
    """Draw boxes with their tags, as large as the image needs; tags keep clear of each other."""
    short_side = min(canvas.size)
    line_width = max(1, round(short_side / 220))
    font_size = max(11, round(short_side / 32))
    pen = ImageDraw.Draw(canvas)
    for mark in reversed(marks):  # the best last, on top
        pen.rectangle(mark.rectangle, outline=mark.color, width=line_width)
    # All tags after all boxes, so that no line crosses a text; the best choose their positions first.
    taken: list[Rectangle] = []
    tags = []
    for rectangle, full_text, color in marks:
        text, font = with_font(full_text, font_size)
        tags.append((text, font, color, _place_tag(rectangle, text, font, canvas.size, taken)))
    for text, font, color, tag in reversed(tags):
        pen.rectangle(tag, fill=color)
        center = (tag.left + tag.right + 1) / 2, (tag.top + tag.bottom + 1) / 2
        pen.text(center, text, fill=_contrast(color), font=font, anchor="mm")


def _place_tag(
    box: Rectangle, text: str, font: Font, size: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Place a text above its box, inside or below, where no other tag is yet, in an image (width, height)."""
    # The height does not depend on Latin letters, so that all tags of an image are alike.
    _, top, _, bottom = font.getbbox("Ág" if text.isascii() else f"Ág{text}")
    padding = max(2, round((bottom - top) / 5))
    width, height = math.ceil(font.getlength(text)) + 2 * padding, math.ceil(bottom - top) + padding
    positions = (
        (box.left, box.top - height),
        (box.left, box.top),
        (box.right - width + 1, box.top - height),
        (box.left, box.bottom + 1),
        (box.right - width + 1, box.bottom - height + 1),
        (box.left, box.bottom - height + 1),
    )
    tags = [_inside(left, top, width, height, size) for left, top in positions]
    taken.append(next((tag for tag in tags if not any(map(tag.overlaps, taken))), tags[0]))
    return taken[-1]


def _inside(left: int, top: int, width: int, height: int, size: tuple[int, int]) -> Rectangle:
    """Move a rectangle into an image of size (width, height), and cut it if it is larger."""
    left, top = max(0, min(left, size[0] - width)), max(0, min(top, size[1] - height))
    return Rectangle(left, top, min(left + width, size[0]) - 1, min(top + height, size[1]) - 1)


def _contrast(color: Color) -> Color:
    """Return white where it reads well on a color, else black."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in color)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # White has a contrast of 1.05 / (luminance + 0.05), of which WCAG 2.1 asks 3 for large text.
    return (255, 255, 255) if luminance < 0.29 else (0, 0, 0)


def _write(
    pen: ImageDraw.ImageDraw, position: tuple[int, int], text: str, size: int, width: int, color: Color
) -> None:
    """Write a line that is shortened to a width in pixels."""
    text, font = with_font(text, size)
    pen.text(position, _fit(text, font, width), fill=color, font=font)


def _fit(text: str, font: Font, width: int) -> str:
    """Shorten a text to a width in pixels."""
    text = text[: width + 1]  # no letter is narrower than a pixel, and drawing thousands takes seconds
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
