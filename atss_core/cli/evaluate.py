"""Evaluate a detector on DATASETS.TEST with the metrics of COCO, and of VOC for datasets in its format."""

from __future__ import annotations

from collections.abc import Sequence

from atss_core.apps.check.checks import log_limits
from atss_core.cli.common import add_config_arguments, add_launcher_argument, load_config
from atss_core.cli.parser import CommandParser
from atss_core.cli.report import build_report
from atss_core.engine import evaluate_detector

EXAMPLE = """
atss test --config-file atss_R_50_FPN_1x \\
    MODEL.WEIGHT ATSS_R_50_FPN_1x.pth TEST.IMS_PER_BATCH 4
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with its arguments, by default those of this process."""
    parser = CommandParser("atss test", __doc__, EXAMPLE)
    add_launcher_argument(parser)
    add_config_arguments(parser)
    evaluate_detector(load_config(parser.parse_args(argv)), check=log_limits, report=build_report)
