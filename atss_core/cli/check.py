"""Look for what is wrong with data sets, before it spoils a training run, and show what is in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from atss_core.apps.check.charts import plot_objects
from atss_core.apps.check.checks import (
    Defect,
    ambiguous_orientations,
    check_images,
    nothing_to_learn,
    quick_check,
    refuse_fatal,
    unused_ranges,
)
from atss_core.apps.check.image_grids import draw_defects, draw_sample
from atss_core.apps.check.statistics import (
    Statistics,
    count_objects,
    crowded_images,
    network_sides,
    unfit_objects,
)
from atss_core.cli.datasets import add_dataset_arguments, keep_datasets, open_datasets
from atss_core.cli.parser import CommandParser
from atss_core.data import (
    DetectionDataset,
    check_same_classes,
    resize_size,
)
from atss_core.data.datasets.coco import some
from atss_core.evaluation.matching import MAX_DETECTIONS
from atss_core.modeling.build import build_anchor_generator, build_assigner
from atss_core.structures.boxes import widths_heights
from atss_core.utils.files import atomic_write
from atss_core.utils.progress import progress
from atss_core.utils.text import printable
from atss_core.visualization.boxes import save_image

# Images that anchors are assigned on; more would take minutes and tell the same.
LARGEST_SAMPLE = 1000
# Headers that training reads before it begins; more would keep it waiting on a network disk.
NUM_HEADERS = 500
BAR_WIDTH = 40
# What a folder receives.
FILES = ("report.json", "objects.png", "sample.jpg", "defects.jpg")
MOST_CLASSES = 40  # lines of the table of classes

EXAMPLE = """
atss check cells/train.json@cells/images cells/val.json@cells/images
atss check datasets/bccd@trainval datasets/bccd@test
atss check --config-file my.yaml          (DATASETS.TRAIN and DATASETS.TEST of it)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
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
    found = [
        check(cfg, dataset, arguments.output_dir / dataset.name, arguments.quick) for dataset in datasets
    ]
    print_shared_images(datasets)
    for dataset in datasets:
        check_same_classes(dataset, datasets[0].class_names, datasets[0].name)
    for dataset, defects in zip(datasets, found, strict=True):
        refuse_fatal(dataset.name, defects, cfg.DATALOADER.SKIP_CORRUPT)


def check(cfg: CfgNode, dataset: DetectionDataset, folder: Path, quick: bool) -> list[Defect]:
    """Check a data set, print a report and write it with images to a folder; returns what is wrong.

    Args:
        cfg: the configuration, for sizes and anchors.
        dataset: opened for testing.
        folder: receives ``report.json``, ``objects.png``, ``sample.jpg`` and ``defects.jpg``.
        quick: leave out what reads the images, and all that draws them.
    """
    sides = network_sides(dataset, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    statistics = count_objects(dataset, sides)
    num_headers = NUM_HEADERS if quick else len(dataset)
    found = [*quick_defects(cfg, dataset, num_headers), *nothing_to_learn(dataset)]
    if not quick:
        found += [*check_images(dataset), *objects_without_anchor(cfg, dataset)]
    print("\n".join(map(printable, describe(dataset, statistics, found))))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "report.json", "w") as file:
        json.dump(to_json(dataset, statistics, found), file, indent=2)  # names on disk need not be UTF-8
    lengths = np.sqrt(sides_of_anchors(cfg).prod(axis=1)).tolist()
    plot_objects(folder / "objects.png", dataset.name, statistics.sides, lengths, statistics.objects)
    if not quick:
        save_image(draw_sample(dataset), folder / "sample.jpg")
        sheet = draw_defects(dataset, found)
        (folder / "defects.jpg").unlink(missing_ok=True)  # of an earlier check
        if sheet is not None:
            save_image(sheet, folder / "defects.jpg")
    print(f"  report and images: {folder}\n")
    return found


def quick_defects(cfg: CfgNode, dataset: DetectionDataset, num_headers: int = NUM_HEADERS) -> list[Defect]:
    """Find what annotations, file names and some headers tell, the fit of anchors included, for training."""
    sides = network_sides(dataset, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return [
        *quick_check(dataset),
        *ambiguous_orientations(dataset, num_headers),
        *unused_ranges(dataset),
        *unfit_objects(dataset, sides, sides_of_anchors(cfg)),
        *beyond_limits(cfg, dataset),
    ]


def beyond_limits(cfg: CfgNode, dataset: DetectionDataset) -> list[Defect]:
    """Find images with more objects than detections count, by the configuration or the metrics."""
    return crowded_images(
        dataset,
        num_of_class=MAX_DETECTIONS,
        num_of_image=cfg.TEST.DETECTIONS_PER_IMG,
        num_of_level=cfg.MODEL.ATSS.PRE_NMS_TOP_N,
    )


def sides_of_anchors(cfg: CfgNode) -> np.ndarray:
    """Return (width, height) of the anchors of all levels in pixels, shape (S, 2)."""
    boxes = torch.cat(list(build_anchor_generator(cfg).cell_anchors))
    return torch.stack(widths_heights(boxes), dim=1).double().numpy()


def objects_without_anchor(cfg: CfgNode, dataset: DetectionDataset) -> list[Defect]:
    """Assign anchors on images of the network's size, and report the objects that get none."""
    generator, assigner = build_anchor_generator(cfg), build_assigner(cfg)
    indices = range(len(dataset))
    if len(indices) > LARGEST_SAMPLE:
        indices = np.random.default_rng(0).choice(len(dataset), LARGEST_SAMPLE, replace=False).tolist()
    num_objects, num_without, images = 0, 0, []
    for index in progress(indices, f"anchors on {dataset.name}"):
        target = dataset.target(index)
        if not len(target):
            continue
        size = resize_size(target.image_size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        (matched,) = assigner(generator.for_image(size), [target.resize(size).boxes])
        missed = len(target) - len(matched[matched >= 0].unique())
        num_objects += len(target)
        num_without += missed
        images += [index] * (missed > 0)
    if not num_without:
        return []
    where = some([dataset.image_info(index)["file_name"] for index in images])
    message = (
        f"{num_without} of {num_objects} objects get no anchor by POSITIVE_TYPE "
        f"{cfg.MODEL.ATSS.POSITIVE_TYPE} and are not learned: too small for the grid, or behind others (in "
        f"{where}); larger images (INPUT.MIN_SIZE_TRAIN) or other anchors help"
    )
    return [Defect("objects without an anchor", message, tuple(images))]


def describe(dataset: DetectionDataset, statistics: Statistics, defects: Sequence[Defect]) -> list[str]:
    """Return the report as lines of text."""
    (low_w, low_h), (high_w, high_h) = statistics.image_sizes
    crowds = {"VOC": "difficult"}.get(dataset.layout, "crowds or ignore regions")
    lines = [
        f"{dataset.name} ({dataset.layout} layout, {dataset.path})",
        f"  {statistics.num_images} images of {low_w}x{low_h} to {high_w}x{high_h} pixels, "
        f"{statistics.num_empty} of them empty; {statistics.num_objects} objects of {dataset.num_classes} "
        f"class(es), at most {statistics.most_in_image} in an image; {statistics.num_crowds} {crowds}",
        "  classes",
        *_bars(dict(list(statistics.objects.items())[:MOST_CLASSES])),
    ]
    if dataset.num_classes > MOST_CLASSES:
        lines.append(f"    ... and {dataset.num_classes - MOST_CLASSES} more in report.json")
    lines += ["  sides of objects, pixels of the network's input", *_bars(statistics.size_histogram())]
    if not defects:
        return [*lines, "  nothing wrong was found"]
    return [*lines, "  what is wrong", *(f"    {'!' if d.is_fatal else '-'} {d.message}" for d in defects)]


def _bars(counts: dict[str, int]) -> list[str]:
    width = max(map(len, counts), default=0)
    most = max([*counts.values(), 1])
    return [
        f"    {name:<{width}} {count:>8} {'#' * round(BAR_WIDTH * count / most)}".rstrip()
        for name, count in counts.items()
    ]


def to_json(dataset: DetectionDataset, statistics: Statistics, defects: Sequence[Defect]) -> dict:
    """Return the report for programs: counts, and every image and annotation of each defect."""
    images = dataset.coco_dict["images"]
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "path": str(dataset.path),
        "num_images": statistics.num_images,
        "num_empty_images": statistics.num_empty,
        "num_crowds": statistics.num_crowds,
        "objects": statistics.objects,
        "images_with_class": statistics.images,
        "sides": statistics.size_histogram(),
        "defects": [
            {
                "kind": defect.kind,
                "is_fatal": defect.is_fatal,
                "message": defect.message,
                "images": [images[i]["file_name"] for i in defect.images],
                "annotation_ids": dataset.annotations.ids[list(defect.rows)].tolist(),
            }
            for defect in defects
        ],
    }


def print_shared_images(datasets: Sequence[DetectionDataset]) -> None:
    """Say which data sets have images in common: a detector must not be tested on what it has learned."""
    seen: dict[Path, str] = {}
    for dataset in datasets:
        paths = [dataset.image_path(index).resolve() for index in range(len(dataset))]
        shared = [path for path in paths if path in seen]
        if shared:
            print(
                f"{len(shared)} images of {dataset.name} are in {seen[shared[0]]} as well, such as "
                f"{shared[0].name}: a test on images of the training set says nothing"
            )
        seen.update(dict.fromkeys(paths, dataset.name))
