"""Show how anchors are assigned to the objects of data sets, by ATSS and by the rules that it replaces."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from atss_core.apps.assign.assignment import (
    SIZES,
    THRESHOLD_EDGES,
    AssignedObjects,
    choose_objects,
    join,
    summarize_positives,
    summarize_thresholds,
)
from atss_core.apps.assign.images import (
    CANDIDATE,
    LOST,
    OUTSIDE,
    POSITIVE,
    TILE_SIDE,
    ObjectView,
    draw_object,
    draw_positives,
    draw_summary,
)
from atss_core.apps.assign.report import ATSS, COLUMNS, column_of_rules, describe, to_html
from atss_core.cli.datasets import add_dataset_arguments, keep_datasets, open_datasets
from atss_core.cli.parser import CommandParser
from atss_core.data import DetectionDataset, UnreadableImageError, check_same_classes, resize_size
from atss_core.data.dataset import NOTHING_TO_LEARN
from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners import Assigner, AtssAssigner
from atss_core.modeling.build import build_anchor_generator, build_assigner
from atss_core.structures import BoxList
from atss_core.structures.boxes import area, centers, widths_heights
from atss_core.utils.files import atomic_write
from atss_core.utils.progress import progress
from atss_core.utils.text import printable
from atss_core.visualization import html
from atss_core.visualization.boxes import draw_boxes, image_grid, save_image

SERVED = "ATSS + AT_LEAST_ONE"
OBJECTS_PER_IMAGE = 6  # whose candidates are drawn

EXAMPLE = """
atss assign cells/train.json@cells/images
atss assign datasets/bccd@test --config-file atss_R_18_own_data
atss assign --config-file my.yaml MODEL.ATSS.TOPK 15   (DATASETS.TRAIN and TEST of it)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
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
    keep_datasets(datasets, (file for d in datasets for file in outputs_of(arguments.output_dir / d.name)))
    for dataset in datasets:
        folder = arguments.output_dir / dataset.name
        Viewer(cfg, dataset).write(folder, arguments.num_images, arguments.num_drawn)


def outputs_of(folder: Path) -> list[Path]:
    """Return what a run replaces or removes in its folder."""
    images = folder / "images"
    return [folder / "report.json", folder / "index.html", images / "summary.png", *drawings_of(images)]


def drawings_of(images: Path) -> list[Path]:
    """Return the drawings of an earlier run."""
    return [file for name in ("[0-9]*_rule*.jpg", "[0-9]*_object_*.jpg") for file in images.glob(name)]


def build_rules(cfg: CfgNode) -> dict[str, Assigner]:
    """Build ATSS with and without AT_LEAST_ONE and the rules it is compared with, whatever cfg chooses.

    Limits that belong to one rule are left out of the others.
    """
    kinds = {ATSS: "ATSS", SERVED: "ATSS", "SSC": "SSC", "IoU": "IoU", "TOPK": "TOPK"}
    rules = {}
    for name, kind in kinds.items():
        own = cfg.clone()
        own.defrost()
        own.MODEL.ATSS.POSITIVE_TYPE = kind
        own.MODEL.ATSS.AT_LEAST_ONE = name == SERVED
        if kind == "SSC":
            own.MODEL.ATSS.POSITIVES_IN_BOX = True
        else:
            own.MODEL.ATSS.CENTER_SAMPLING_RADIUS = 0.0
        rules[name] = build_assigner(own)
    return rules


class Viewer:
    """Assign anchors on the images of a data set, count and draw.

    Args:
        cfg: for the size of the network's input, anchors and rules.
        dataset: opened for testing.
    """

    def __init__(self, cfg: CfgNode, dataset: DetectionDataset) -> None:
        self.cfg = cfg
        self.dataset = dataset
        self.generator = build_anchor_generator(cfg)
        self.rules = build_rules(cfg)

    def write(self, folder: Path, num_images: int, num_drawn: int) -> None:
        """Print the table, and write ``report.json``, ``index.html`` and its images.

        Raises:
            ValueError: if no image has an object, or one cannot be read.
        """
        indices = self._sample(num_images)
        title = f"anchors on {self.dataset.name}"
        counted = {index: self._count(index) for index in progress(indices, title)}
        objects = join(list(counted.values()))
        report = self._report(objects, len(indices))
        print("\n".join(map(printable, describe(report))))
        drawn = choose_images({i: int((c.positives[ATSS] == 0).sum()) for i, c in counted.items()}, num_drawn)
        images = folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        for old in drawings_of(images):  # an earlier run may have drawn more
            old.unlink()
        parts = [part for number, i in enumerate(drawn, start=1) for part in self._draw(i, number, images)]
        positives, shares = (column_of_rules(report, key) for key in COLUMNS)
        histograms = {size: report["thresholds"][size]["histogram"] for size in SIZES}
        summary = draw_summary(positives, shares, histograms, THRESHOLD_EDGES)
        save_image(summary, images / "summary.png")
        with atomic_write(folder / "report.json", "w") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
        with atomic_write(folder / "index.html", "w") as file:
            file.write(to_html(report, summary.size, parts))
        print(f"  report and images: {folder / 'index.html'}\n")

    def _sample(self, most: int) -> list[int]:
        """Choose images with objects, the same ones each time."""
        indices = list(range(len(self.dataset)))
        Random(0).shuffle(indices)
        found: list[int] = []
        for index in indices:
            if len(found) == most:
                break
            found += [index] * (len(self.dataset.target(index)) > 0)
        if not found:
            raise ValueError(NOTHING_TO_LEARN.format(self.dataset.path))
        return sorted(found)

    def _target(self, index: int) -> tuple[Anchors, BoxList]:
        """Return anchors and objects of an image in the size of the network's input."""
        target = self.dataset.target(index)
        size = resize_size(target.image_size, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        return self.generator.for_image(size), target.resize(size)

    def _count(self, index: int) -> AssignedObjects:
        anchors, target = self._target(index)
        positives = {
            name: count_positives(rule(anchors, [target.boxes])[0], len(target))
            for name, rule in self.rules.items()
        }
        found = self._atss.candidates(anchors, [target.boxes])
        return AssignedObjects(
            area(target.boxes).double().numpy(), positives, found.threshold[0].double().numpy()
        )

    @property
    def _atss(self) -> AtssAssigner:
        rule = self.rules[ATSS]
        assert isinstance(rule, AtssAssigner)
        return rule

    def _report(self, objects: AssignedObjects, num_images: int) -> dict[str, Any]:
        atss = self.cfg.MODEL.ATSS
        return {
            "name": self.dataset.name,
            "layout": self.dataset.layout,
            "path": str(self.dataset.path),
            "num_images": num_images,
            "num_objects": len(objects),
            "settings": {
                "MIN_SIZE_TEST": self.cfg.INPUT.MIN_SIZE_TEST,
                "MAX_SIZE_TEST": self.cfg.INPUT.MAX_SIZE_TEST,
                **{key: atss[key] for key in ("ANCHOR_SIZES", "ASPECT_RATIOS", "SCALES_PER_OCTAVE", "TOPK")},
            },
            "rules": summarize_positives(objects),
            "thresholds": summarize_thresholds(objects),
            "threshold_edges": THRESHOLD_EDGES.round(6).tolist(),
        }

    def _draw(self, index: int, number: int, folder: Path) -> list[str]:
        """Draw an image and some of its objects; returns parts of the page, none if it is to be skipped."""
        try:
            image = self.dataset.load_image(index)
        except UnreadableImageError:
            if self.cfg.DATALOADER.SKIP_CORRUPT:
                return []
            raise
        anchors, target = self._target(index)
        matched = {name: rule(anchors, [target.boxes])[0] for name, rule in self.rules.items()}
        counts = count_positives(matched[ATSS], len(target))
        chosen = choose_objects(area(target.boxes).numpy(), counts, OBJECTS_PER_IMAGE)
        tiles = [("objects", self._draw_objects(image, target, chosen))]
        for name, owner in matched.items():
            tiles.append((_caption(name, owner, len(target)), _draw_rule(image, anchors, target, owner)))
        views = [self._view(anchors, target, matched[ATSS], i) for i in chosen]
        panels = [(view.title, draw_object(image, target.image_size, view)) for view in views]
        rows = [tiles[:3], tiles[3:]]
        file_name = str(self.dataset.image_info(index)["file_name"])
        save_image(image_grid(rows, title=file_name), folder / f"{number}_rules.jpg")
        return [
            html.text("h2", file_name),
            html.grid(_figures(tiles, folder, f"{number}_rule"), 300),
            html.grid(_figures(panels, folder, f"{number}_object"), 460),
        ]

    def _draw_objects(self, image: Image.Image, target: BoxList, chosen: Sequence[int]) -> Image.Image:
        """Draw all objects, each in a colour of its own, with the names of those that are looked at."""
        names = [
            f"{i + 1} {self._class_name(target, i)}" if i in chosen else str(i + 1)
            for i in range(len(target))
        ]
        numbered = BoxList(target.boxes, target.image_size, labels=torch.arange(1, len(target) + 1))
        return draw_boxes(image, numbered, names, scale=TILE_SIDE / max(image.size))

    def _class_name(self, target: BoxList, i: int) -> str:
        assert target.labels is not None
        return self.dataset.class_names[int(target.labels[i]) - 1]

    def _view(self, anchors: Anchors, target: BoxList, matched: Tensor, i: int) -> ObjectView:
        """Look at one object of an image by ATSS."""
        found = self._atss.candidates(anchors, [target.boxes])
        candidates = found.anchors[0, i]
        reaches = found.ious[0, i] >= found.threshold[0, i]
        states = torch.full_like(candidates, CANDIDATE)
        states[reaches] = OUTSIDE
        states[found.is_positive[0, i]] = LOST
        states[matched[candidates] == i] = POSITIVE
        width, height = (float(side) for side in widths_heights(target.boxes[i]))
        num_positives = int((states == POSITIVE).sum())
        return ObjectView(
            title=f"{i + 1} {self._class_name(target, i)}, {width:.0f} x {height:.0f} px: {num_positives} "
            f"positive{'s' * (num_positives != 1)} of {len(candidates)} candidates",
            box=target.boxes[i].numpy(),
            centers=centers(anchors.boxes[candidates]).numpy(),
            levels=np.searchsorted(np.cumsum(anchors.counts), candidates.numpy(), side="right"),
            ious=found.ious[0, i].numpy(),
            states=states.numpy(),
            mean=float(found.mean[0, i]),
            threshold=float(found.threshold[0, i]),
            strides=anchors.strides,
        )


def count_positives(matched: Tensor, num_objects: int) -> np.ndarray:
    """Return the number of positive anchors of each object, int64 (G,), from the object of each anchor."""
    return torch.bincount(matched[matched >= 0], minlength=num_objects).numpy()


def choose_images(num_without: Mapping[int, int], most: int) -> list[int]:
    """Choose half of the images for their objects without a positive, and the others by chance.

    Args:
        num_without: image -> objects without a positive.
        most: how many to choose.
    """
    worst = sorted((i for i in num_without if num_without[i]), key=lambda i: (-num_without[i], i))[
        : most // 2
    ]
    others = [i for i in num_without if i not in worst]
    return sorted(worst + Random(0).sample(others, min(most - len(worst), len(others))))


def _caption(rule: str, owner: Tensor, num_objects: int) -> str:
    counts = count_positives(owner, num_objects)
    return f"{rule}: {counts.sum()} positives, {np.count_nonzero(counts == 0)} of {num_objects} without"


def _draw_rule(image: Image.Image, anchors: Anchors, target: BoxList, owner: Tensor) -> Image.Image:
    is_positive = owner >= 0
    points = centers(anchors.boxes[is_positive]).numpy()
    return draw_positives(image, target.image_size, target.boxes.numpy(), points, owner[is_positive].numpy())


def _figures(tiles: Sequence[tuple[str, Image.Image]], folder: Path, stem: str) -> list[str]:
    """Save images to a folder and return them with their captions in HTML."""
    parts = []
    for number, (caption, tile) in enumerate(tiles, start=1):
        name = f"{stem}_{number}.jpg"
        save_image(tile, folder / name)
        parts.append(html.figure(f"{folder.name}/{name}", caption, tile.size))
    return parts
