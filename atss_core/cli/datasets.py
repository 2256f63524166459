"""What the commands that read datasets share: their arguments, and how they open them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from yacs.config import CfgNode

from atss_core.cli.parser import CommandParser, expanded_path
from atss_core.config import key_names, load_cfg, override
from atss_core.data import DetectionDataset, build_datasets
from atss_core.utils.files import refuse_overwriting

CONFIG = "configs/atss/atss_R_50_FPN_1x.yaml"


def add_dataset_arguments(parser: CommandParser, output_dir: Path) -> None:
    """Add ``--config-file``, ``--output-dir`` with a default, and datasets followed by overrides."""
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        default=CONFIG,
        help="for sizes, anchors and assigners, and for datasets if none are given (default %(default)s)",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        type=expanded_path,
        default=output_dir,
        help="report and images, one folder per dataset (default %(default)s)",
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="DATASET | KEY VALUE",
        help="datasets: names, or annotations.json@images, folder@split, data.yaml@split; then overrides "
        "such as INPUT.MIN_SIZE_TEST 400",
    )


def open_datasets(arguments: argparse.Namespace) -> tuple[CfgNode, list[DetectionDataset]]:
    """Return the configuration and the datasets that the arguments name, with all their images.

    Raises:
        ValueError: if there are none, two have one name, or one is faulty.
    """
    names, opts = split_arguments(arguments.arguments)
    cfg = load_cfg(arguments.config_file, opts)
    names = names or list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    if not names:
        raise ValueError(
            "there is no dataset to look at: give its path, such as train.json@images, or a "
            "--config-file that names some in DATASETS.TRAIN"
        )
    return cfg, build_datasets(override(cfg, "DATASETS.TEST", tuple(names)), training=False)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments before the first that looks like a key of the configuration."""
    keys = set(key_names())
    is_key = [word in keys or word.startswith("DATASETS.REGISTER.") for word in arguments]
    first = is_key.index(True) if any(is_key) else len(arguments)
    return list(arguments[:first]), list(arguments[first:])


def open_dataset(cfg: CfgNode, name: str) -> DetectionDataset:
    """Open a dataset with all its images, by name or path."""
    return build_datasets(override(cfg, "DATASETS.TEST", (name,)), training=False)[0]


def keep_datasets(datasets: Sequence[DetectionDataset], outputs: Iterable[Path]) -> None:
    """Raise ValueError if an output is an image or annotation file."""
    inputs = [d.path for d in datasets] + [d.image_path(i) for d in datasets for i in range(len(d))]
    refuse_overwriting(outputs, inputs, "Give another --output-dir.")
