"""Show how anchors are assigned to the objects of datasets, by ATSS and by the assigners that it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atss_core.apps.assign.report import AssignmentViewer, outputs_of
from atss_core.cli.datasets import add_dataset_arguments, keep_datasets, open_datasets
from atss_core.cli.parser import CommandParser
from atss_core.data import check_same_classes

EXAMPLE = """
atss assign cells/train.json@cells/images
atss assign datasets/bccd@test --config-file atss_R_18_own_data
atss assign --config-file my.yaml MODEL.ATSS.TOPK 15   (DATASETS.TRAIN and TEST of it)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line arguments, by default those of this process."""
    parser = CommandParser("atss assign", __doc__, EXAMPLE)
    add_dataset_arguments(parser, output_dir=Path("training_dir/assign"))
    parser.add_argument(
        "--num-images",
        metavar="N",
        type=int,
        default=500,
        help="images that are counted, a random sample of larger sets (default %(default)s)",
    )
    parser.add_argument(
        "--num-drawn", metavar="N", type=int, default=6, help="images that are drawn (default %(default)s)"
    )
    arguments = parser.parse_args(argv)
    if arguments.num_images < 1 or arguments.num_drawn < 0:
        raise ValueError(
            f"expected --num-images of at least 1 and --num-drawn of at least 0, got "
            f"{arguments.num_images} and {arguments.num_drawn}"
        )
    cfg, datasets = open_datasets(arguments)
    for dataset in datasets:
        check_same_classes(dataset, datasets[0].class_names, datasets[0].name)
    folders = [arguments.output_dir / dataset.name for dataset in datasets]
    keep_datasets(datasets, (file for folder in folders for file in outputs_of(folder)))
    for dataset, folder in zip(datasets, folders, strict=True):
        AssignmentViewer(cfg, dataset, folder).run(arguments.num_images, arguments.num_drawn)
