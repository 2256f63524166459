"""Write the dataset "shapes", train a small detector on it, evaluate it and draw its detections."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from atss_core.apps.check.checks import check_dataset
from atss_core.apps.quickstart import draw_detections
from atss_core.cli.parser import CommandParser
from atss_core.cli.report import build_report
from atss_core.config import load_cfg
from atss_core.config.catalog import find_dataset
from atss_core.data import write_shapes
from atss_core.engine import train_detector
from atss_core.utils.files import auxiliary
from atss_core.visualization.charts import plot_curves

logger = logging.getLogger(__name__)

CONFIG = "configs/quick/atss_R_18_shapes.yaml"
NUM_IMAGES = 12  # in the image grid

EXAMPLE = """
atss quickstart SOLVER.MAX_ITER 200 OUTPUT_DIR training_dir/quicker
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line arguments, by default those of this process."""
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
    for name, of_dataset in metrics.items():
        logger.info("%s: AP %.3f, AP50 %.3f", name, of_dataset.overall["AP"], of_dataset.overall["AP50"])
    logger.info("Detections beside the ground truth: %s", folder / "detections.png")
    logger.info("Loss curves: %s", folder / "loss_curves.png")
    logger.info("Metrics: %s", folder / "inference" / cfg.DATASETS.TEST[0] / "metrics.json")
