"""What the commands that look at data sets share: their words, and how they open them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from yacs.config import CfgNode

from atss_core.cli.parser import CommandParser, expanded_path
from atss_core.config import key_names, load_cfg
from atss_core.config.catalog import find_dataset
from atss_core.data import DetectionDataset, build_transform, check_names, check_num_classes
from atss_core.utils.files import refuse_overwriting

CONFIG = "configs/atss/atss_R_50_FPN_1x.yaml"


def add_dataset_arguments(parser: CommandParser, output_dir: Path) -> None:
    """Add ``--config-file``, ``--output-dir``, and data sets with overrides behind them.

    Args:
        parser: of the command.
        output_dir: the default.
    """
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        default=CONFIG,
        help="for sizes, anchors and rules, and for data sets if none are given (default %(default)s)",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        type=expanded_path,
        default=output_dir,
        help="report and images, a folder a data set (default %(default)s)",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PLACE | KEY VALUE",
        help="data sets: names, or annotations.json@images, folder@split, data.yaml@split; then overrides "
        "such as INPUT.MIN_SIZE_TEST 400",
    )


def open_datasets(arguments: argparse.Namespace) -> tuple[CfgNode, list[DetectionDataset]]:
    """Return the configuration and the data sets that the arguments name, with all their images.

    Raises:
        ValueError: if there are none, two have one name, or one is faulty.
    """
    places, opts = split_words(arguments.words)
    cfg = load_cfg(arguments.config_file, opts)
    names = places or list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    if not names:
        raise ValueError(
            "there is no data set to look at: give its place, such as train.json@images, or a "
            "--config-file that names some in DATASETS.TRAIN"
        )
    datasets = [open_dataset(cfg, name) for name in names]
    check_names([dataset.name for dataset in datasets])
    return cfg, datasets


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of the command line before the first that looks like a key of the configuration."""
    keys = set(key_names())
    is_key = [word in keys or word.startswith("DATASETS.REGISTER.") for word in words]
    first = is_key.index(True) if any(is_key) else len(words)
    return list(words[:first]), list(words[first:])


def open_dataset(cfg: CfgNode, name: str) -> DetectionDataset:
    """Open a data set with all its images, by name or place."""
    entry = find_dataset(name, cfg.DATASETS.DATA_DIR, cfg.DATASETS.REGISTER)
    dataset = DetectionDataset(
        entry,
        transform=build_transform(cfg, training=False),
        training=False,
        max_pixels=cfg.INPUT.MAX_PIXELS,
        grey_bits=cfg.INPUT.GREY_BITS,
    )
    check_num_classes(dataset, cfg)
    return dataset


def keep_datasets(datasets: Sequence[DetectionDataset], outputs: Iterable[Path]) -> None:
    """Refuse to write over, or remove, images and annotations.

    Raises:
        ValueError: if an output is one of them.
    """
    inputs = [d.path for d in datasets] + [d.image_path(i) for d in datasets for i in range(len(d))]
    refuse_overwriting(outputs, inputs, "Give another --output-dir.")
