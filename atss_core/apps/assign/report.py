"""Show label assignment on datasets: the report as text, JSON and a page with drawings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from atss_core.apps.assign.assignment import (
    ATSS,
    QUANTILES,
    SIZES,
    build_assigners,
    choose_images,
    choose_objects,
    count_positives,
    summarize,
)
from atss_core.apps.assign.drawings import (
    TILE_SIDE,
    ObjectDrawing,
    draw_positives,
    draw_summary,
)
from atss_core.data import DetectionDataset, UnreadableImageError, resize_size
from atss_core.data.datasets.dataset import NO_USABLE_OBJECT
from atss_core.modeling.anchors import Anchors
from atss_core.modeling.assigners import AtssAssigner
from atss_core.modeling.build import build_anchor_generator
from atss_core.structures import BoxList
from atss_core.structures.boxes import area
from atss_core.utils.files import atomic_write
from atss_core.utils.logging import progress
from atss_core.utils.text import printable
from atss_core.visualization.boxes import draw_boxes, image_grid, save_image
from atss_core.visualization.page import render

OBJECTS_PER_IMAGE = 6  # whose candidates are drawn
# Columns of the table: key of the report -> title, factor and format.
COLUMNS = {
    "positives_per_object": ("positives per object", 1, "{:.1f}"),
    "share_without_positive": ("objects without a positive, %", 100, "{:.2f}"),
}
SETTINGS = ("ANCHOR_SIZES", "ASPECT_RATIOS", "SCALES_PER_OCTAVE", "TOPK")

Figure = tuple[str, str, tuple[int, int]]  # caption, path from the page, (width, height)


def outputs_of(folder: Path) -> list[Path]:
    """Return what a run replaces or removes in the folder of a dataset."""
    return [folder / "report.json", folder / "index.html", folder / "images/summary.png", *_drawings(folder)]


def _drawings(folder: Path) -> list[Path]:
    """Return the drawings of an earlier run, which may be more."""
    patterns = ("[0-9]*_assigner*.jpg", "[0-9]*_object_*.jpg")
    return [file for pattern in patterns for file in (folder / "images").glob(pattern)]


class AssignmentViewer:
    """Assign anchors on the images of a dataset, count positives, and draw.

    Args:
        cfg: for the size of the network input, anchors and assigners.
        dataset: opened for testing.
        folder: receives ``report.json``, ``index.html`` and ``images``.
    """

    def __init__(self, cfg: CfgNode, dataset: DetectionDataset, folder: Path) -> None:
        self.cfg = cfg
        self.dataset = dataset
        self.folder = folder
        self.generator = build_anchor_generator(cfg)
        self.assigners = build_assigners(cfg)
        atss = self.assigners[ATSS]
        assert isinstance(atss, AtssAssigner)
        self.atss = atss

    def run(self, num_images: int, num_drawn: int) -> None:
        """Count on at most ``num_images``, draw ``num_drawn`` of them, print the table, write the page.

        Raises:
            ValueError: if no image has an object, or one cannot be read.
        """
        indices = self._sample(num_images)
        report, unmatched = self._count(indices)
        print("\n".join(map(printable, _describe(report))))
        for old in _drawings(self.folder):
            old.unlink()
        drawn = choose_images(unmatched, num_drawn)
        images = [page for number, i in enumerate(drawn, start=1) if (page := self._draw(i, number))]
        summary = draw_summary(report, COLUMNS)
        save_image(summary, self.folder / "images" / "summary.png")
        with atomic_write(self.folder / "report.json", "w") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
        with atomic_write(self.folder / "index.html", "w") as file:
            file.write(
                render(
                    Path(__file__).with_name("templates") / "assign.html",
                    title=f"Label assignment on {report['name']}",
                    report=report,
                    tables=list(_tables(report)),
                    summary=("images/summary.png", summary.size),
                    images=images,
                )
            )
        print(f"  report and images: {self.folder / 'index.html'}\n")

    def _sample(self, most: int) -> list[int]:
        """Choose images with objects, the same ones each time."""
        indices = list(range(len(self.dataset)))
        Random(0).shuffle(indices)
        chosen = list(islice((i for i in indices if len(self.dataset.target(i))), most))
        if not chosen:
            raise ValueError(NO_USABLE_OBJECT.format(self.dataset.path))
        return sorted(chosen)

    def _inputs(self, index: int) -> tuple[Anchors, BoxList]:
        """Return anchors and objects of an image in pixels of the network input."""
        target = self.dataset.target(index)
        size = resize_size(target.image_size, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        return self.generator.for_image(size), target.resize(size)

    def _count(self, indices: list[int]) -> tuple[dict[str, Any], dict[int, int]]:
        """Return the report, and the number of objects without an ATSS positive per image."""
        areas, thresholds = [], []
        positives: dict[str, list[np.ndarray]] = {name: [] for name in self.assigners}
        for index in progress(indices, f"anchors on {self.dataset.name}"):
            anchors, target = self._inputs(index)
            for name, assigner in self.assigners.items():
                positives[name].append(count_positives(assigner(anchors, [target.boxes])[0], len(target)))
            areas.append(area(target.boxes).double().numpy())
            candidates = self.atss.candidates(anchors, [target.boxes])
            thresholds.append(candidates.threshold[0].double().numpy())
        counts = {name: np.concatenate(of_images) for name, of_images in positives.items()}
        report = {
            "name": self.dataset.name,
            "format": self.dataset.format,
            "path": str(self.dataset.path),
            "num_images": len(indices),
            "num_objects": len(counts[ATSS]),
            "settings": {
                "MIN_SIZE_TEST": self.cfg.INPUT.MIN_SIZE_TEST,
                "MAX_SIZE_TEST": self.cfg.INPUT.MAX_SIZE_TEST,
                **{key: self.cfg.MODEL.ATSS[key] for key in SETTINGS},
            },
            **summarize(np.concatenate(areas), counts, np.concatenate(thresholds)),
        }
        unmatched = {i: int((c == 0).sum()) for i, c in zip(indices, positives[ATSS], strict=True)}
        return report, unmatched

    def _draw(self, index: int, number: int) -> tuple[str, str, list[Figure], list[Figure]] | None:
        """Draw an image and some of its objects, or return None if it is to be skipped.

        Returns:
            file name, path of all assigners in one image, their figures and those of objects.
        """
        try:
            image = self.dataset.load_image(index)
        except UnreadableImageError:
            if self.cfg.DATALOADER.SKIP_CORRUPT:
                return None
            raise
        anchors, target = self._inputs(index)
        matched = {name: assigner(anchors, [target.boxes])[0] for name, assigner in self.assigners.items()}
        candidates = self.atss.candidates(anchors, [target.boxes])
        chosen = choose_objects(
            area(target.boxes).numpy(), count_positives(matched[ATSS], len(target)), OBJECTS_PER_IMAGE
        )
        assert target.labels is not None
        names = [f"{i} {self.dataset.class_names[k - 1]}" for i, k in enumerate(target.labels.tolist(), 1)]
        shown = [name if i in chosen else str(i + 1) for i, name in enumerate(names)]
        # Each object has a colour of its own.
        numbered = BoxList(target.boxes, target.image_size, labels=torch.arange(1, len(target) + 1))
        tiles = [("objects", draw_boxes(image, numbered, shown, scale=TILE_SIDE / max(image.size)))]
        for name, of_anchors in matched.items():
            counts = count_positives(of_anchors, len(target))
            caption = f"{name}: {counts.sum()} positives, {(counts == 0).sum()} of {len(target)} unmatched"
            tiles.append((caption, draw_positives(image, anchors, target, of_anchors)))
        objects = [ObjectDrawing(anchors, target, candidates, matched[ATSS], i, names[i]) for i in chosen]
        panels = [(drawing.title, drawing.draw(image)) for drawing in objects]
        file_name = str(self.dataset.image_info(index)["file_name"])
        stem = self.folder / "images" / str(number)
        save_image(image_grid([tiles[:3], tiles[3:]], title=file_name), f"{stem}_assigners.jpg")
        together = f"images/{number}_assigners.jpg"
        return file_name, together, _save(tiles, f"{stem}_assigner"), _save(panels, f"{stem}_object")


def _save(tiles: list[tuple[str, Image.Image]], stem: str) -> list[Figure]:
    files = [Path(f"{stem}_{number}.jpg") for number in range(1, len(tiles) + 1)]
    for (_, tile), file in zip(tiles, files, strict=True):
        save_image(tile, file)
    return [(text, f"images/{file.name}", tile.size) for (text, tile), file in zip(tiles, files, strict=True)]


def _tables(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield the tables of a report: title, header and rows, all as text."""
    header = [f"{size} ({report['thresholds'][size]['objects']})" for size in SIZES]

    def row(name: str, values: Iterable[float | None], factor: float, form: str) -> list[str]:
        return [name, *("-" if value is None else form.format(factor * value) for value in values)]

    for key, (title, factor, form) in COLUMNS.items():
        rows = [
            row(name, (sizes[size][key] for size in SIZES), factor, form)
            for name, sizes in report["assigners"].items()
        ]
        yield title, ["assigner", *header], rows
    quantiles = [report["thresholds"][size]["quantiles"] for size in SIZES]
    rows = [
        row(
            f"{100 * q:.0f}% of the objects are below",
            (of_size[str(q)] for of_size in quantiles),
            1,
            "{:.3f}",
        )
        for q in QUANTILES
    ]
    yield "threshold of ATSS", ["", *header], rows


def _describe(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as lines of text."""
    yield f"{report['name']} ({report['format']} format, {report['path']})"
    yield (
        f"  {report['num_objects']} objects of {report['num_images']} images, sizes in pixels of the "
        "network's input: S < 32 x 32 <= M < 96 x 96 <= L"
    )
    for title, header, rows in _tables(report):
        yield f"  {title}"
        lines = [["", *header[1:]], *rows]
        first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
        for name, *cells in lines:
            yield f"    {name:<{first}}" + "".join(
                f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True)
            )
