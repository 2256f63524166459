"""Find faults of datasets before they spoil a training run, and show what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atss_core.apps.check.report import FILES, check_datasets
from atss_core.cli.datasets import add_dataset_arguments, keep_datasets, open_datasets
from atss_core.cli.parser import CommandParser

EXAMPLE = """
atss check cells/train.json@cells/images cells/val.json@cells/images
atss check datasets/bccd@trainval datasets/bccd@test
atss check --config-file my.yaml          (DATASETS.TRAIN and DATASETS.TEST of it)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line arguments, by default those of this process."""
    parser = CommandParser("atss check", __doc__, EXAMPLE)
    add_dataset_arguments(parser, output_dir=Path("training_dir/check"))
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only what annotations, file names and some headers tell: no images",
    )
    arguments = parser.parse_args(argv)
    cfg, datasets = open_datasets(arguments)
    keep_datasets(datasets, (arguments.output_dir / d.name / file for d in datasets for file in FILES))
    check_datasets(cfg, datasets, arguments.output_dir, quick=arguments.quick)
