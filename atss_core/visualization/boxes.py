"""Draw boxes with readable labels, and sheets of images side by side, by Pillow."""

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
        """Say whether the two share a pixel."""
        return not (
            self.right < other.left
            or other.right < self.left
            or self.bottom < other.top
            or other.bottom < self.top
        )


class Mark(NamedTuple):
    """What is drawn for one box."""

    place: Rectangle
    text: str
    color: Color


def draw_boxes(
    image: Image.Image,
    result: BoxList,
    class_names: Sequence[str],
    score_threshold: float = 0.0,
    scale: float = 1.0,
) -> Image.Image:
    """Draw detections or ground truth on a copy of an image.

    Boxes may belong to another size of the image, such as the network input; they are resized to it.

    Args:
        image: the image.
        result: boxes with labels 1..C; scores are shown where there are some.
        class_names: the name of label l is ``class_names[l - 1]``.
        score_threshold: boxes with a lower score are left out.
        scale: the image is resized by this first, so that lines and text are crisp; see ``readable_scale``.

    Returns:
        An RGB image, ``scale`` times as large.

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
    if not any(rows):
        raise ValueError("expected at least one image for a sheet, got none; give rows of (caption, image)")
    num_columns = max(map(len, rows))
    widths = [max(row[i][1].width for row in rows if i < len(row)) for i in range(num_columns)]
    heights = [max(image.height for _, image in row) for row in rows if row]
    caption_height = round(CAPTION_SIZE * 1.5)
    top = GAP + (round(TITLE_SIZE * 1.6) if title else 0)

    sheet_height = top + sum(height + caption_height + GAP for height in heights)
    sheet = Image.new("RGB", (GAP + sum(width + GAP for width in widths), sheet_height), PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, (GAP, GAP), title, TITLE_SIZE, sheet.width - 2 * GAP, INK)
    for row, height in zip(filter(len, rows), heights, strict=True):
        left = GAP
        for (caption, image), width in zip(row, widths, strict=False):
            _write(pen, (left, top), caption, CAPTION_SIZE, width, FAINT_INK)
            sheet.paste(image, (left, top + caption_height))
            left += width + GAP
        top += height + caption_height + GAP
    return sheet


def readable_scale(image_size: tuple[int, int], short_side: int = 384) -> int:
    """Return the smallest whole factor that brings the short side of a (height, width) to ``short_side``.

    The long side of a thin image is not enlarged beyond ``LONGEST_SIDE``.
    """
    return max(1, min(math.ceil(short_side / min(image_size)), LONGEST_SIDE // max(image_size)))


def class_color(label: int) -> Color:
    """Return the colour of a label, always the same; neighbouring labels differ most.

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
    """Yield what to draw, best scores first."""
    if result.labels is None:
        raise ValueError(f"expected boxes with labels, got {result}; give its labels, 1 for a single class")
    scores = None if result.scores is None else result.scores.tolist()
    order = range(len(result)) if scores is None else sorted(range(len(result)), key=lambda i: -scores[i])
    boxes, labels = result.boxes.tolist(), result.labels.tolist()
    for i in order:
        if scores is not None and scores[i] < score_threshold:
            break
        text = _name(labels[i], class_names)
        if scores is not None:
            text += f" {scores[i]:.2f}"
        left, top, right, bottom = map(round, boxes[i])
        yield Mark(Rectangle(left, top, max(left, right), max(top, bottom)), text, class_color(labels[i]))


def _name(label: int, class_names: Sequence[str]) -> str:
    if not 1 <= label <= len(class_names):
        raise ValueError(
            f"expected labels in 1..{len(class_names)}, got {label}; give all names of the model"
        )
    return class_names[label - 1]


def draw_marks(canvas: Image.Image, marks: Sequence[Mark]) -> None:
    """Draw boxes with their labels, as large as the image needs; labels keep clear of each other."""
    short_side = min(canvas.size)
    line_width = max(1, round(short_side / 220))
    font_size = max(11, round(short_side / 32))
    pen = ImageDraw.Draw(canvas)
    for mark in reversed(marks):  # the best last, on top
        pen.rectangle(mark.place, outline=mark.color, width=line_width)
    taken: list[Rectangle] = []
    # All tags after all boxes, so that no line crosses a text; the best choose their places first.
    tags = []
    for mark in marks:
        text, font = with_font(mark.text, font_size)
        mark = mark._replace(text=text)
        tags.append((mark, font, _place_tag(mark, font, canvas.size, taken)))
    for mark, font, tag in reversed(tags):
        pen.rectangle(tag, fill=mark.color)
        center = (tag.left + tag.right + 1) / 2, (tag.top + tag.bottom + 1) / 2
        pen.text(center, mark.text, fill=_contrast(mark.color), font=font, anchor="mm")


def _place_tag(mark: Mark, font: Font, size: tuple[int, int], taken: list[Rectangle]) -> Rectangle:
    """Find room for the text of a mark: above its box, inside or below, where no other tag is yet."""
    width, height = _tag_size(mark.text, font)
    box = mark.place
    wanted = (
        (box.left, box.top - height),
        (box.left, box.top),
        (box.right - width + 1, box.top - height),
        (box.left, box.bottom + 1),
        (box.right - width + 1, box.bottom - height + 1),
        (box.left, box.bottom - height + 1),
    )
    places = [_inside(left, top, width, height, size) for left, top in wanted]
    free = (place for place in places if not any(place.overlaps(other) for other in taken))
    place = next(free, places[0])
    taken.append(place)
    return place


def _tag_size(text: str, font: Font) -> tuple[int, int]:
    # The height does not depend on Latin letters, so that all tags of an image are alike.
    _, top, _, bottom = font.getbbox("Ág" if text.isascii() else f"Ág{text}")
    padding = max(2, round((bottom - top) / 5))
    return math.ceil(font.getlength(text)) + 2 * padding, math.ceil(bottom - top) + padding


def _inside(left: int, top: int, width: int, height: int, size: tuple[int, int]) -> Rectangle:
    """Move a rectangle into an image of size (width, height), and cut it if it is larger."""
    left, top = max(0, min(left, size[0] - width)), max(0, min(top, size[1] - height))
    return Rectangle(left, top, min(left + width, size[0]) - 1, min(top + height, size[1]) - 1)


def _contrast(color: Color) -> Color:
    """Return white where it reads well on a colour, else black."""
    linear = ((channel / 255) ** 2.2 for channel in color)
    luminance = sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
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
