"""Make the data set "shapes", train a small detector on it, test it and draw what it finds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from yacs.config import CfgNode

from atss_core.cli.hooks import build_report, check_dataset
from atss_core.cli.parser import CommandParser
from atss_core.config import load_cfg
from atss_core.config.catalog import find_dataset
from atss_core.data import DetectionDataset, build_test_loaders, write_shapes
from atss_core.engine import train_detector
from atss_core.structures import BoxList
from atss_core.utils.files import auxiliary
from atss_core.visualization.boxes import draw_boxes, image_grid, readable_scale, save_image
from atss_core.visualization.curves import plot_curves

logger = logging.getLogger(__name__)

CONFIG = "configs/quick/atss_R_18_shapes.yaml"
NUM_IMAGES = 12  # on the sheet, two pairs in a row
SCORE_THRESHOLD = 0.5

EXAMPLE = """
atss quickstart SOLVER.MAX_ITER 200 OUTPUT_DIR training_dir/quicker
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
    parser = CommandParser("atss quickstart", __doc__, EXAMPLE)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=f"overrides of {CONFIG}")
    cfg = load_cfg(CONFIG, parser.parse_args(argv).opts)
    write_shapes(find_dataset(cfg.DATASETS.TRAIN[0], cfg.DATASETS.DATA_DIR).annotations.parent.parent)
    metrics = train_detector(cfg, check=check_dataset, report=build_report)

    folder = Path(cfg.OUTPUT_DIR)
    with auxiliary(folder / "loss_curves.png"):
        plot_curves(folder / "metrics.jsonl", folder / "loss_curves.png")
    with auxiliary(folder / "detections.png"):
        draw_detections(cfg, folder / "detections.png", NUM_IMAGES)
    for name, found in metrics.items():
        logger.info("%s: AP %.3f, AP50 %.3f", name, found.overall["AP"], found.overall["AP50"])
    logger.info("Detections beside the ground truth: %s", folder / "detections.png")
    logger.info("Loss curves: %s", folder / "loss_curves.png")
    logger.info("Metrics: %s", folder / "inference" / cfg.DATASETS.TEST[0] / "metrics.json")


def draw_detections(cfg: CfgNode, path: Path, num_images: int, title: str = "", blank: bool = False) -> None:
    """Draw the first test images, ground truth beside the saved detections, on one sheet.

    Args:
        cfg: the configuration of the run that saved the detections.
        path: the sheet.
        num_images: how many, an even number.
        title: over the sheet, by default the name of the data set.
        blank: draw the boxes on grey, for documents that must not show the images themselves.
    """
    dataset = build_test_loaders(cfg)[0].dataset
    assert isinstance(dataset, DetectionDataset)
    predictions = torch.load(
        Path(cfg.OUTPUT_DIR) / "inference" / dataset.name / "predictions.pth", weights_only=True
    )
    pairs = []
    for index in range(num_images):
        image = dataset.load_image(index)
        canvas = Image.new("RGB", image.size, "gainsboro") if blank else image
        pairs.append(draw_pair(canvas, dataset, index, predictions[dataset.image_ids[index]]))
    rows = [[*left, *right] for left, right in zip(pairs[::2], pairs[1::2], strict=True)]
    save_image(
        image_grid(rows, title=f"{title or dataset.name}: ground truth, and detections beside it"), path
    )


def draw_pair(
    image: Image.Image, dataset: DetectionDataset, index: int, prediction: dict[str, Any]
) -> list[tuple[str, Image.Image]]:
    """Return captions and images: the ground truth of an image, and its detections."""
    scale = readable_scale((image.height, image.width), short_side=256)
    result = BoxList(
        prediction["boxes"],
        prediction["image_size"],
        labels=prediction["labels"],
        scores=prediction["scores"],
    )
    names = dataset.class_names
    truth = draw_boxes(image, dataset.target(index), names, scale=scale)
    found = draw_boxes(image, result, names, SCORE_THRESHOLD, scale=scale)
    return [(f"{dataset.image_ids[index]}: ground truth", truth), ("detections", found)]
