"""Made-up objects and detections, with what is hard about them chosen by name."""

import numpy as np

KINDS = (
    "plain",
    "equal scores",
    "more than 100 detections",
    "whole pixels",
    "areas at the borders of the sizes",
    "single precision",
    "areas of segments",
    "IoUs at the thresholds",
    "class without objects",
    "class without detections",
    "boxes without area",
    "boxes outside",
    "copies",
    "only crowds",
    "no detections",
    "one object",
)
AT_A_BORDER = (32, 96, 32.0000001, 31.99999, 16, 64, 48)


def make_up(kind, seed, crowds=True):
    """Return image ids, category ids, annotations (ids from 1) and detections with "id" and "area"."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    images, classes = range(1, int(rng.integers(2, 20)) + 1), range(1, int(rng.integers(1, 6)) + 1)
    annotations, detections = [], []
    for image_id in images:
        objects = _objects(kind, rng, classes)
        for box, category_id in objects:
            area = box[2] * box[3] * (rng.random() if kind == "areas of segments" else 1)
            if kind == "areas at the borders of the sizes" and rng.random() < 0.5:
                area = rng.choice([32**2, 96**2, 32**2 + 0.5, 96**2 - 0.001])
            is_crowd = crowds and (kind == "only crowds" or rng.random() < 0.15)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(is_crowd),
                }
            )
        for box, category_id, score in _detections(kind, rng, classes, objects):
            detections.append(
                {
                    "id": len(detections) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    if kind == "one object":
        annotations = annotations[:1]
    return list(images), list(classes), annotations, detections


def _objects(kind, rng, classes):
    number = 0 if rng.random() < 0.15 else int(rng.integers(0, 8))
    objects = []
    for _ in range(number):
        box = _box(rng)
        if kind == "areas at the borders of the sizes":
            box[2:] = rng.choice(AT_A_BORDER, 2)
        if kind == "IoUs at the thresholds":
            box = np.array([10 * rng.integers(0, 3), 10 * rng.integers(0, 2), 20, 20], dtype=float)
        if kind == "boxes without area" and rng.random() < 0.3:
            box[2] = 0
        if kind == "boxes outside" and rng.random() < 0.3:
            box[0] -= 500
        category_id = int(rng.choice(classes))
        if kind == "class without objects" and category_id == 2:
            category_id = 1
        objects.append((_rounded(kind, box), category_id))
    return objects


def _detections(kind, rng, classes, objects):
    number = 0 if kind == "no detections" or rng.random() < 0.15 else int(rng.integers(0, 30))
    if kind == "more than 100 detections":
        number = 260
    for _ in range(number):
        box, category_id = _box(rng), int(rng.choice(classes))
        if objects and rng.random() < 0.7:
            box, category_id = objects[int(rng.integers(len(objects)))]
            box = box + rng.normal(0, 1, 4) * rng.choice([0, 1, 5, 20])
            box[2:] = np.maximum(box[2:], 0.5)
            if rng.random() < 0.1:
                category_id = int(rng.choice(classes))
        if kind == "IoUs at the thresholds":
            box = np.array(
                [10 * rng.integers(0, 3), 10 * rng.integers(0, 2), rng.choice([10, 15, 19, 20]), 20],
                dtype=float,
            )
        if kind == "boxes without area" and rng.random() < 0.2:
            box[2] = 0
        if kind == "class without detections" and category_id == 1:
            category_id = classes[-1]
        score = float(rng.random())
        if kind in ("equal scores", "more than 100 detections"):
            score = round(score, 1)
        if kind == "single precision":
            score = float(np.float32(score))
        for _ in range(3 if kind == "copies" else 1):
            yield _rounded(kind, box), category_id, score


def _box(rng):
    return rng.random(4) * (400, 300, 150, 150) + (0, 0, 1, 1)


def _rounded(kind, box):
    if kind in ("whole pixels", "copies"):
        return np.floor(box)
    return box.astype(np.float32).astype(np.float64) if kind == "single precision" else box
