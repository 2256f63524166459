"""Check datasets: the report as text, JSON and a page with drawings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from atss_core.apps.check.checks import (
    NUM_HEADERS,
    Defect,
    check_images,
    missing_objects,
    quick_defects,
    refuse_fatal,
    unmatched_objects,
)
from atss_core.apps.check.drawings import draw_defects, draw_sample, plot_objects
from atss_core.apps.check.statistics import anchor_sizes, count_objects, object_sides
from atss_core.data import DetectionDataset, check_same_classes
from atss_core.utils.files import atomic_write
from atss_core.utils.text import printable
from atss_core.visualization.boxes import save_image
from atss_core.visualization.page import render

# What a run writes to, or removes from, the folder of a dataset.
FILES = ("report.json", "index.html", "objects.png", "sample.jpg", "defects.jpg")
BAR_WIDTH = 40
MOST_CLASSES = 40  # rows of the table of classes


def check_datasets(
    cfg: CfgNode, datasets: Sequence[DetectionDataset], output_dir: Path, *, quick: bool
) -> None:
    """Check datasets that were opened for testing; print the reports, write them to folders of their names.

    Args:
        cfg: for sizes and anchors.
        datasets: of the same classes.
        output_dir: receives the folders.
        quick: skip checks that read images, and drawings of them.

    Raises:
        ValueError: if training must not start with one of them, or their classes differ.
    """
    defects = [
        _check(cfg, dataset, output_dir / dataset.name, quick, shared)
        for dataset, shared in zip(datasets, _shared_images(datasets), strict=True)
    ]
    for dataset in datasets:
        check_same_classes(dataset, datasets[0].class_names, datasets[0].name)
    for dataset, of_dataset in zip(datasets, defects, strict=True):
        refuse_fatal(dataset.name, of_dataset, cfg.DATALOADER.SKIP_CORRUPT)


def _check(
    cfg: CfgNode, dataset: DetectionDataset, folder: Path, quick: bool, shared: Sequence[Defect]
) -> list[Defect]:
    defects = quick_defects(cfg, dataset, NUM_HEADERS if quick else len(dataset))
    defects += [*missing_objects(dataset), *shared]
    if not quick:
        defects += [*check_images(dataset), *unmatched_objects(cfg, dataset)]
    report = _to_json(cfg, dataset, defects)
    print("\n".join(map(printable, _describe(report))))
    folder.mkdir(parents=True, exist_ok=True)
    anchor_sides = np.sqrt(anchor_sizes(cfg).prod(axis=1)).tolist()
    sides = object_sides(cfg, dataset)
    plot_objects(folder / "objects.png", dataset.name, sides, anchor_sides, report["objects"])
    if not quick:
        save_image(draw_sample(dataset), folder / "sample.jpg")
        (folder / "defects.jpg").unlink(missing_ok=True)  # of an earlier check
        grid = draw_defects(dataset, defects)
        if grid is not None:
            save_image(grid, folder / "defects.jpg")
    with atomic_write(folder / "report.json", "w") as file:
        json.dump(report, file, indent=2)  # ASCII: names on disk need not be UTF-8
    with atomic_write(folder / "index.html", "w") as file:
        file.write(_to_html(report, folder, quick))
    print(f"  report and images: {folder / 'index.html'}\n")
    return defects


def _to_html(report: Mapping[str, Any], folder: Path, quick: bool) -> str:
    headings = {
        "objects.png": "Objects and anchors",
        "defects.jpg": "Cases of the warnings",
        "sample.jpg": "Sample with annotations",
    }
    drawn = [name for name in headings if (folder / name).exists() and (name == "objects.png" or not quick)]
    return render(
        Path(__file__).with_name("templates") / "check.html",
        title=f"Dataset {report['name']}",
        report=report,
        summary=_summary(report),
        quick=quick,
        warnings=[
            (
                "! " * d["is_fatal"] + d["kind"],
                len(d["images"]),
                len(d["annotation_ids"]) or "-",
                d["message"],
            )
            for d in report["defects"]
        ],
        classes=[(name, n, report["images_with_class"][name]) for name, n in report["objects"].items()],
        figures=[(headings[name], name, Image.open(folder / name).size) for name in drawn],
    )


def _to_json(cfg: CfgNode, dataset: DetectionDataset, defects: Sequence[Defect]) -> dict[str, Any]:
    """Return counts, and every image and annotation of each defect."""
    images = dataset.coco_dict["images"]
    return {
        "name": dataset.name,
        "format": dataset.format,
        "path": str(dataset.path),
        **count_objects(cfg, dataset),
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


def _summary(report: Mapping[str, Any]) -> str:
    low, high = (f"{width}x{height}" for width, height in report["image_sizes"])
    crowds = {"VOC": "difficult"}.get(report["format"], "crowds or ignore regions")
    return (
        f"{report['num_images']} images of {low} to {high} pixels, {report['num_empty_images']} of them "
        f"empty; {report['num_objects']} objects of {len(report['objects'])} class(es), at most "
        f"{report['most_objects_per_image']} in an image; {report['num_crowds']} {crowds}"
    )


def _describe(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as lines of text."""
    yield f"{report['name']} ({report['format']} format, {report['path']})"
    yield f"  {_summary(report)}"
    classes = list(report["objects"].items())
    yield from _bars("classes", dict(classes[:MOST_CLASSES]))
    if len(classes) > MOST_CLASSES:
        yield f"    ... and {len(classes) - MOST_CLASSES} more in report.json"
    yield from _bars("object sizes, pixels of the network's input", report["sides"])
    yield "  warnings" if report["defects"] else "  nothing wrong was found"
    for defect in report["defects"]:
        yield f"    {'!' if defect['is_fatal'] else '-'} {defect['message']}"


def _bars(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    width, most = max(map(len, counts), default=0), max([*counts.values(), 1])
    yield f"  {title}"
    for name, count in counts.items():
        yield f"    {name:<{width}} {count:>8} {'#' * round(BAR_WIDTH * count / most)}".rstrip()


def _shared_images(datasets: Sequence[DetectionDataset]) -> Iterator[list[Defect]]:
    """Yield a warning per dataset with images of an earlier one: training images must not be evaluated."""
    seen: dict[Path, str] = {}
    for dataset in datasets:
        paths = [dataset.image_path(index).resolve() for index in range(len(dataset))]
        shared = tuple(index for index, path in enumerate(paths) if path in seen)
        if shared:
            first = paths[shared[0]]
            message = (
                f"{len(shared)} images of {dataset.name} are in {seen[first]} as well, such as {first.name}:"
                " an evaluation on images of the training set says nothing"
            )
            yield [Defect("images of two datasets", message, shared)]
        else:
            yield []
        seen.update(dict.fromkeys(paths, dataset.name))
