"""Draw detections beside the ground truth."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from yacs.config import CfgNode

from atss_core.data import build_datasets
from atss_core.structures import BoxList
from atss_core.visualization.boxes import draw_boxes, image_grid, readable_scale, save_image

SCORE_THRESHOLD = 0.5


def draw_detections(cfg: CfgNode, path: Path, num_images: int, title: str = "", blank: bool = False) -> None:
    """Draw the first test images, ground truth beside the saved detections, in one image grid.

    Args:
        cfg: the configuration of the run that saved the detections.
        path: the image to write.
        num_images: an even number: two pairs fill a row.
        title: above the grid, by default the name of the dataset.
        blank: draw the boxes on grey, for documents that must not show the images themselves.
    """
    dataset = build_datasets(cfg, training=False)[0]
    folder = Path(cfg.OUTPUT_DIR) / "inference" / dataset.name
    predictions = torch.load(folder / "predictions.pth", weights_only=True)
    tiles = []
    for index, image_id in enumerate(dataset.image_ids[:num_images]):
        image = dataset.load_image(index)
        canvas = Image.new("RGB", image.size, "gainsboro") if blank else image
        scale = readable_scale((image.height, image.width), short_side=256)
        target, values = dataset.target(index), predictions[image_id]
        detections = BoxList(
            values["boxes"], values["image_size"], labels=values["labels"], scores=values["scores"]
        )
        for caption, boxes in {f"{image_id}: ground truth": target, "detections": detections}.items():
            drawn = draw_boxes(canvas, boxes, dataset.class_names, SCORE_THRESHOLD, scale=scale)
            tiles.append((caption, drawn))
    rows = [tiles[i : i + 4] for i in range(0, len(tiles), 4)]
    save_image(image_grid(rows, f"{title or dataset.name}: ground truth, and detections beside it"), path)
