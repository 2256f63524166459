"""A tiny dataset, the golden COCO evaluation, and their evaluators."""

import json
from pathlib import Path

import torch

from atss_core.evaluation import CocoEvaluator
from atss_core.structures import BoxList
from atss_core.structures.boxes import from_xywh

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "coco_eval.json"


def load_golden():
    """Read the golden file; its records are arrays with the field names beside them."""
    golden = json.loads(REFERENCE.read_text())

    def records(plural, singular):
        fields = golden[f"{singular}_fields"]
        return [dict(zip(fields, row, strict=True)) for row in golden[plural]]

    coco = {
        "images": records("images", "image"),
        "categories": records("categories", "category"),
        "annotations": records("annotations", "annotation"),
    }
    return coco, records("detections", "detection"), golden["metrics"]


def build(coco, **options):
    categories = sorted(coco["categories"], key=lambda c: c["id"])
    return CocoEvaluator(
        coco,
        [c["id"] for c in categories],
        [c["name"] for c in categories],
        [image["id"] for image in coco["images"]],
        **options,
    )


def feed(evaluator, coco, detections, ratio=1.0):
    """Process COCO results as if the network input were ``ratio`` times as large as the image."""
    label_of = {category_id: label for label, category_id in enumerate(evaluator.category_ids, start=1)}
    for image in coco["images"]:
        mine = [d for d in detections if d["image_id"] == image["id"]]
        result = BoxList(
            from_xywh(torch.tensor([d["bbox"] for d in mine], dtype=torch.float64).reshape(-1, 4)),
            image_size=(image["height"], image["width"]),
            labels=torch.tensor([label_of[d["category_id"]] for d in mine], dtype=torch.int64),
            scores=torch.tensor([d["score"] for d in mine], dtype=torch.float64),
        )
        evaluator.process(
            image["id"], result.resize((round(image["height"] * ratio), round(image["width"] * ratio)))
        )


def tiny(**changes):
    """Two images of 100x200 (height x width), categories 7 (cat) and 3 (dog), one object each."""
    coco = {
        "images": [{"id": 1, "height": 100, "width": 200}, {"id": 2, "height": 100, "width": 200}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 7, "bbox": [10, 20, 40, 50]},
            {"id": 1, "image_id": 2, "category_id": 3, "bbox": [60, 10, 100, 80]},
        ],
    }
    coco.update(changes)
    return coco


def detections(boxes, labels, scores=None, size=(100, 200)):
    scores = torch.full((len(labels),), 0.9) if scores is None else torch.tensor(scores)
    return BoxList(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        size,
        torch.tensor(labels, dtype=torch.int64),
        scores,
    )


NOTHING = detections([], [])
CAT = detections([[10, 20, 49, 69]], [1])
DOG = detections([[60, 10, 159, 89]], [2])
