"""Train a detector, resuming where an earlier run of the same folder stopped, and evaluate it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from atss_core.apps.check.checks import check_dataset
from atss_core.cli.common import add_config_arguments, add_launcher_argument, load_config
from atss_core.cli.parser import CommandParser
from atss_core.cli.report import build_report
from atss_core.engine import train_detector
from atss_core.utils import dist

logger = logging.getLogger(__name__)

EXAMPLE = """
atss train --config-file atss_R_50_FPN_1x \\
    DATALOADER.NUM_WORKERS 2 OUTPUT_DIR training_dir/atss_R_50_FPN_1x
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with its arguments, by default those of this process."""
    parser = CommandParser("atss train", __doc__, EXAMPLE)
    add_launcher_argument(parser)
    parser.add_argument("--skip-test", action="store_true", help="do not evaluate the final model")
    add_config_arguments(parser)
    arguments = parser.parse_args(argv)
    cfg = load_config(arguments)
    train_detector(cfg, is_evaluated=not arguments.skip_test, check=check_dataset, report=build_report)
    if dist.is_main():
        logger.info(_next_steps(Path(cfg.OUTPUT_DIR)))


def _next_steps(folder: Path) -> str:
    """Return the commands that use the files of a training."""
    config, weights = (shlex.quote(str(folder / name)) for name in ("config.yml", "model_final.pth"))
    commands = {
        "measure": f"atss test --config-file {config} MODEL.WEIGHT {weights}",
        "draw": f"atss demo --config-file {config} --weights {weights} --images-dir IMAGES",
        "curves": f"atss plot {shlex.quote(str(folder))}",
        "export": f"atss export --config-file {config} --weights {weights} --format onnx",
    }
    return "\n".join(["Next steps:", *(f"  {f'{name}:':<9} {c}" for name, c in commands.items())])
