"""Images of a data set: a sample with its boxes, and the worst of what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import torch
from PIL import Image, ImageDraw

from atss_core.apps.check.checks import Defect
from atss_core.data.dataset import DetectionDataset
from atss_core.data.images import read_image
from atss_core.structures import BoxList
from atss_core.structures.boxes import from_xywh
from atss_core.visualization.boxes import draw_boxes, image_grid
from atss_core.visualization.fonts import with_font

TILE_HEIGHT = 260
TILE_WIDTH = 4 * TILE_HEIGHT  # of the widest, which are lower than the others
COLUMNS = 4
CASES_A_DEFECT = 4
# Boxes of a defect are drawn at least so large, in pixels of the tile: many of them are too thin to be seen.
SMALLEST_BOX = 10


def draw_sample(dataset: DetectionDataset, num_images: int = 12) -> Image.Image:
    """Draw images with their objects, of those that have some, the same ones each time.

    Args:
        dataset: opened for testing.
        num_images: at most so many.
    """
    owners = np.searchsorted(dataset.image_ids, np.unique(dataset.annotations.image_ids)).tolist()
    candidates = owners or list(range(len(dataset)))
    chosen = sorted(Random(0).sample(candidates, min(num_images, len(candidates))))
    tiles = [(_file_name(dataset, i), _tile(dataset, i, None)) for i in chosen]
    return image_grid(_rows(tiles), title=f"{dataset.name}: a sample with its annotations")


def draw_defects(dataset: DetectionDataset, defects: Sequence[Defect]) -> Image.Image | None:
    """Draw the worst cases of each defect, one defect a row; None if none can be shown.

    Args:
        dataset: opened for testing.
        defects: found in it.
    """
    rows = []
    for defect in defects:
        cases = defect.images[:CASES_A_DEFECT]
        rows.append([(f"{defect.kind}: {_file_name(dataset, i)}", _tile(dataset, i, defect)) for i in cases])
    rows = [row for row in rows if row]
    return image_grid(rows, title=f"{dataset.name}: what is wrong") if rows else None


def _rows(tiles: list[tuple[str, Image.Image]]) -> list[list[tuple[str, Image.Image]]]:
    return [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]


def _file_name(dataset: DetectionDataset, index: int) -> str:
    return str(dataset.image_info(index)["file_name"])


def _tile(dataset: DetectionDataset, index: int, defect: Defect | None) -> Image.Image:
    """Draw an image with the objects of a defect, or with all if it is about none or about no object."""
    try:
        image = dataset.load_image(index)
    except ValueError as error:
        image = _without_annotations(dataset, index, error)
        scale = _tile_scale(image)
        return image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
    scale = _tile_scale(image)
    if defect is None or not defect.rows:
        return draw_boxes(image, dataset.target(index), dataset.class_names, scale=scale)
    rows = [r for r in defect.rows if dataset.annotations.image_ids[r] == dataset.image_ids[index]]
    return draw_boxes(image, _visible(dataset, index, rows, scale), dataset.class_names, scale=scale)


def _tile_scale(image: Image.Image) -> float:
    return min(TILE_HEIGHT / image.height, TILE_WIDTH / image.width)


def _visible(dataset: DetectionDataset, index: int, rows: Sequence[int], scale: float) -> BoxList:
    """Return objects as boxes inside the image that are large enough to be seen."""
    chosen = dataset.annotations[np.array(rows)]
    height, width = dataset.image_sizes[index].tolist()
    labels = torch.from_numpy(np.searchsorted(dataset.category_ids, chosen.category_ids) + 1)
    boxes = from_xywh(torch.from_numpy(chosen.boxes).float())
    margin = SMALLEST_BOX / scale / 2
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    first = torch.minimum(boxes[:, :2], centers - margin)
    last = torch.maximum(boxes[:, 2:], centers + margin)
    # A box outside is drawn on the border that it is nearest to.
    limit = torch.tensor([width, height]) - 1.0
    first = torch.minimum(first.clamp(min=0), (limit - 2 * margin).clamp(min=0))
    last = torch.minimum(torch.maximum(last, first + 2 * margin), limit)
    return BoxList(torch.cat([first, last], dim=1), (height, width), labels=labels)


def _without_annotations(dataset: DetectionDataset, index: int, error: ValueError) -> Image.Image:
    """Return an image whose boxes do not belong to it, or a card that says why there is none."""
    try:
        return read_image(dataset.image_path(index), True, dataset.max_pixels, dataset.grey_bits)
    except ValueError:
        card = Image.new("RGB", (round(TILE_HEIGHT * 4 / 3), TILE_HEIGHT), "whitesmoke")
        words = str(error).split(" (data set", 1)[0].replace(str(dataset.folder), "...")
        words, font = with_font(words, 14)
        lines = [words[i : i + 44] for i in range(0, min(len(words), 44 * 9), 44)]
        ImageDraw.Draw(card).multiline_text((12, 24), "\n".join(lines), fill="firebrick", font=font)
        return card
