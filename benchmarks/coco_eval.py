"""Time the COCO metrics with each library, compare their numbers, and time the report.

    python benchmarks/coco_eval.py

Makes up an evaluation of the size of COCO's val2017: 5,000 images, 36,000 objects of 80 classes, and 500,000
detections.
"""

import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from measure import device_and_repeats, medians
from PIL import Image

from atss_core.apps.report.images import ImageSource
from atss_core.apps.report.report import ReportInput, build_report
from atss_core.evaluation import CocoEvaluator
from atss_core.evaluation.backends import BACKENDS, measure
from atss_core.structures import BoxList
from atss_core.structures.boxes import from_xywh
from atss_core.utils.extras import has

NUM_IMAGES, NUM_OBJECTS, NUM_DETECTIONS, NUM_CLASSES = 5_000, 36_000, 500_000, 80
SIZE = (480, 640)  # height, width


def make_up(rng):
    """Return a COCO tree and its detections: half of them near objects, half anywhere."""

    def boxes(count):
        corners = rng.random((count, 2)) * (500, 350)
        return np.concatenate([corners, np.exp(rng.normal(4, 1, (count, 2)))], axis=1)

    share = 1 / np.arange(1, NUM_CLASSES + 1)  # few classes have most objects, as in COCO
    classes = rng.choice(NUM_CLASSES, NUM_OBJECTS, p=share / share.sum()) + 1
    images = rng.integers(1, NUM_IMAGES + 1, NUM_OBJECTS)
    objects = boxes(NUM_OBJECTS)
    annotations = [
        {
            "id": i + 1,
            "image_id": int(images[i]),
            "category_id": int(classes[i]),
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(i % 100 == 0),
        }
        for i, box in enumerate(objects.tolist())
    ]
    tree = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for i in range(1, NUM_IMAGES + 1)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, NUM_CLASSES + 1)],
        "annotations": annotations,
    }
    half = NUM_DETECTIONS // 2
    near = rng.integers(0, NUM_OBJECTS, half)
    moved = objects[near] + rng.normal(0, 6, (half, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], 1)
    detections = (
        np.concatenate([moved, boxes(half)]),
        np.concatenate([images[near], rng.integers(1, NUM_IMAGES + 1, half)]),
        np.concatenate([classes[near], rng.integers(1, NUM_CLASSES + 1, half)]),
        np.concatenate([rng.beta(3, 3, half), rng.beta(1, 6, half)]),
    )
    return tree, detections


def feed(evaluator, detections):
    """Hand the detections to the evaluator, image by image."""
    order = np.argsort(detections[1], kind="stable")
    boxes, images, classes, scores = (torch.from_numpy(column[order]) for column in detections)
    bounds = np.searchsorted(images.numpy(), np.arange(1, NUM_IMAGES + 2))
    for i in range(NUM_IMAGES):
        rows = slice(int(bounds[i]), int(bounds[i + 1]))
        evaluator.process(i + 1, BoxList(from_xywh(boxes[rows]), SIZE, classes[rows], scores[rows]))


def version_of(library):
    """Return the name of a library with its version."""
    package = library.replace("_", "-")
    return f"{package} {metadata.version(package)}"


def main():
    """Measure, compare and print."""
    device, repeats = device_and_repeats(__doc__)
    tree, made_up = make_up(np.random.default_rng(0))
    ids = [category["id"] for category in tree["categories"]]
    names = [category["name"] for category in tree["categories"]]
    evaluator = CocoEvaluator(tree, ids, names, [image["id"] for image in tree["images"]])
    feed(evaluator, made_up)
    ground_truth, detections = evaluator.ground_truth, evaluator.results
    libraries = [library for library in BACKENDS if library == "pycocotools" or has(library)]

    def run(library):
        return measure(library, evaluator.tested_ids, ids, ground_truth, detections)

    print(
        f"{NUM_IMAGES} images, {len(ground_truth)} objects, {len(detections)} detections; {repeats} repeats"
    )
    referee = run("pycocotools")
    times = medians([lambda library=library: run(library) for library in libraries], device, repeats)
    slowest = times[libraries.index("pycocotools")]
    print("| library | seconds | faster by | largest difference of AP and AR |\n|---|---|---|---|")
    for library, seconds in zip(libraries, times, strict=True):
        other = run(library)
        difference = max(
            np.abs(getattr(referee, field) - getattr(other, field)).max()
            for field in ("stats", "precision", "recall")
        )
        print(f"| {version_of(library)} | {seconds:.2f} | {slowest / seconds:.1f} | {difference:.1g} |")

    start = time.perf_counter()
    metrics = evaluator.evaluate()
    middle = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        source = ImageSource(lambda _: Image.open(path), {i["id"]: i["file_name"] for i in tree["images"]})
        page = build_report(ReportInput("made up", evaluator, metrics, source))
    end = time.perf_counter()
    print(f"evaluate {middle - start:.1f} s, report {end - middle:.1f} s, {len(page) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
