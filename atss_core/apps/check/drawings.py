"""Draw a dataset: charts of its objects, a sample with boxes, and the worst cases of its defects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from atss_core.apps.check.checks import Defect
from atss_core.data import DetectionDataset, read_image
from atss_core.structures import BoxList
from atss_core.structures import boxes as box_ops
from atss_core.visualization.boxes import draw_boxes, image_grid
from atss_core.visualization.charts import save_figure
from atss_core.visualization.fonts import drawable, set_literal, with_font

BLUE, ORANGE = "#0072B2", "#D55E00"
MOST_CLASSES = 40  # bars that one can still read
TILE_HEIGHT = 260
TILE_WIDTH = 4 * TILE_HEIGHT  # of the widest images, which are lower than the others
COLUMNS = 4
CASES_PER_DEFECT = 4
# Least side of the boxes of a defect, in pixels of the tile: many are too thin to be seen.
SMALLEST_BOX = 10


def plot_objects(
    path: Path, title: str, sides: np.ndarray, anchor_sides: Sequence[float], classes: Mapping[str, int]
) -> None:
    """Draw the histogram of object sizes with the anchors in it, beside the number of objects per class.

    Args:
        path: the image, in the format of its suffix.
        title: above it.
        sides: square roots of the objects' areas, in pixels of the network's input.
        anchor_sides: of the anchors, in the same pixels.
        classes: class name -> objects.
    """
    shown = dict(sorted(classes.items(), key=lambda item: -item[1])[:MOST_CLASSES])
    # Not pyplot: its global state and its choice of a display would leak into the caller.
    figure = Figure(figsize=(11, max(3.6, 1.2 + 0.22 * len(shown))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    set_literal(figure.suptitle(""), title)
    left, right = figure.subplots(1, 2)
    edges = np.geomspace(2, 2048, 41)
    left.hist(np.clip(sides, edges[0], edges[-1]), bins=edges.tolist(), color=BLUE)
    for i, side in enumerate(sorted(set(anchor_sides))):
        left.axvline(side, color=ORANGE, linewidth=1.2, label="" if i else "anchors")
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.set(xlabel="object size, pixels of the network's input", ylabel="objects")
    left.legend(frameon=False)
    bars = right.barh(range(len(shown)), list(shown.values()), color=BLUE)
    right.bar_label(bars, padding=3, fontsize=8)
    names = [name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}" for name in shown]
    right.set_yticks(range(len(shown)), [drawable(name)[0] for name in names], fontsize=8)
    for label, name in zip(right.get_yticklabels(), names, strict=True):
        set_literal(label, name)
    right.invert_yaxis()
    right.margins(x=0.12)
    more = f" of the {len(shown)} largest classes, of {len(classes)}" if len(shown) < len(classes) else ""
    right.set_xlabel(f"objects{more}")
    save_figure(figure, path)


def draw_sample(dataset: DetectionDataset, num_images: int = 12) -> Image.Image:
    """Draw images with their objects, the same ones each time; those with annotations, if there are any.

    Args:
        dataset: opened for testing.
        num_images: at most so many.
    """
    annotated = np.searchsorted(dataset.image_ids, np.unique(dataset.annotations.image_ids)).tolist()
    candidates = annotated or list(range(len(dataset)))
    chosen = sorted(Random(0).sample(candidates, min(num_images, len(candidates))))
    tiles = [(_file_name(dataset, i), _tile(dataset, i)) for i in chosen]
    rows = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
    return image_grid(rows, title=f"{dataset.name}: a sample with its annotations")


def draw_defects(dataset: DetectionDataset, defects: Sequence[Defect]) -> Image.Image | None:
    """Draw the worst cases of each defect, one defect per row; None if none can be shown.

    Args:
        dataset: opened for testing.
        defects: of this dataset.
    """
    rows = [
        [
            (f"{defect.kind}: {_file_name(dataset, i)}", _tile(dataset, i, defect.rows))
            for i in defect.images[:CASES_PER_DEFECT]
        ]
        for defect in defects
        if defect.images
    ]
    return image_grid(rows, title=f"{dataset.name}: warnings") if rows else None


def _file_name(dataset: DetectionDataset, index: int) -> str:
    return str(dataset.image_info(index)["file_name"])


def _tile(dataset: DetectionDataset, index: int, rows: Sequence[int] = ()) -> Image.Image:
    """Draw an image with some rows of the annotations, or with all objects."""
    try:
        image = dataset.load_image(index)
    except ValueError as error:
        image = _without_annotations(dataset, index, error)
        scale = _tile_scale(image)
        return image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
    scale = _tile_scale(image)
    boxes = _visible(dataset, index, rows, scale) if rows else dataset.target(index)
    return draw_boxes(image, boxes, dataset.class_names, scale=scale)


def _tile_scale(image: Image.Image) -> float:
    return min(TILE_HEIGHT / image.height, TILE_WIDTH / image.width)


def _visible(dataset: DetectionDataset, index: int, rows: Sequence[int], scale: float) -> BoxList:
    """Return the objects of an image as boxes inside it that are large enough to be seen."""
    chosen = dataset.annotations[np.array(rows)]
    chosen = chosen[chosen.image_ids == dataset.image_ids[index]]
    height, width = dataset.image_sizes[index].tolist()
    labels = torch.from_numpy(np.searchsorted(dataset.category_ids, chosen.category_ids) + 1)
    boxes = box_ops.from_xywh(torch.from_numpy(chosen.boxes).float())
    margin = SMALLEST_BOX / scale / 2
    centers = box_ops.centers(boxes)
    first = torch.minimum(boxes[:, :2], centers - margin)
    last = torch.maximum(boxes[:, 2:], centers + margin)
    # A box outside is drawn on the border that it is nearest to.
    limit = torch.tensor([width, height]) - 1.0
    first = torch.minimum(first.clamp(min=0), (limit - 2 * margin).clamp(min=0))
    last = torch.minimum(torch.maximum(last, first + 2 * margin), limit)
    return BoxList(torch.cat([first, last], dim=1), (height, width), labels=labels)


def _without_annotations(dataset: DetectionDataset, index: int, error: ValueError) -> Image.Image:
    """Return an image whose boxes do not belong to it, or a card with the reason why there is none."""
    try:
        return read_image(dataset.image_path(index), True, dataset.max_pixels, dataset.grey_bits)
    except ValueError:
        card = Image.new("RGB", (round(TILE_HEIGHT * 4 / 3), TILE_HEIGHT), "whitesmoke")
        reason = str(error).split(" (dataset", 1)[0].replace(str(dataset.folder), "...")
        reason, font = with_font(reason, 14)
        lines = [reason[i : i + 44] for i in range(0, min(len(reason), 44 * 9), 44)]
        ImageDraw.Draw(card).multiline_text((12, 24), "\n".join(lines), fill="firebrick", font=font)
        return card
