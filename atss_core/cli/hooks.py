"""What training and evaluation take from the apps: the check of a dataset, and the report."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from yacs.config import CfgNode

from atss_core.apps.check.checks import refuse_fatal
from atss_core.apps.report.images import ImageSource
from atss_core.apps.report.report import ReportInput
from atss_core.apps.report.report import build_report as build_page
from atss_core.cli.check import beyond_limits, quick_defects
from atss_core.data import DetectionDataset
from atss_core.engine.evaluate import Evaluated

logger = logging.getLogger(__name__)


def check_dataset(cfg: CfgNode, dataset: DetectionDataset) -> None:
    """Log the defects of a dataset that show in annotations, file names and some image headers.

    Raises:
        ValueError: for a defect with which training must not start.
    """
    defects = quick_defects(cfg, dataset)
    refuse_fatal(dataset.name, defects, skip_corrupt=cfg.DATALOADER.SKIP_CORRUPT)
    for defect in defects:
        logger.warning("%s: %s", dataset.name, defect.message)


def log_limits(cfg: CfgNode, dataset: DetectionDataset) -> None:
    """Log what limits the metrics of a dataset."""
    for defect in beyond_limits(cfg, dataset):
        logger.warning("%s: %s", dataset.name, defect.message)


def build_report(cfg: CfgNode, facts: Mapping[str, str], evaluated: Evaluated) -> str:
    """Build the report of an evaluated dataset.

    Args:
        cfg: the configuration.
        facts: of the run, such as the software, by name.
        evaluated: the dataset with its metrics.
    """
    dataset = evaluated.dataset
    indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    names = {i: str(dataset.image_info(index)["file_name"]) for i, index in indices.items()}
    program, *arguments = sys.argv
    start = ["python", program] if program.endswith(".py") else [Path(program).name]
    return build_page(
        ReportInput(
            dataset.name,
            evaluated.evaluator,
            evaluated.metrics,
            ImageSource(lambda image_id: dataset.load_image(indices[image_id]), names),
            evaluated.voc_metrics,
            facts={
                "command": shlex.join([*start, *arguments]),
                **facts,
                "time": str(evaluated.timing),
                "data": f"{dataset.path} ({dataset.layout} layout)",
                "date": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
            },
            configuration=cfg.dump(),
            warnings=[defect.message for defect in beyond_limits(cfg, dataset)],
        )
    )
