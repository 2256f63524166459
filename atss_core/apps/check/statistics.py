"""Count what is in a dataset, and compare the sizes of its objects with the anchors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from atss_core.data import DetectionDataset, resize_size
from atss_core.modeling.build import build_anchor_generator
from atss_core.structures import boxes as box_ops

# Edges of the histogram: the square root of an object's area, in pixels of the network input.
SIZE_EDGES = (0, 4, 8, 16, 32, 64, 128, 256, 512, np.inf)


def image_indices(dataset: DetectionDataset) -> np.ndarray:
    """Return the index in ``coco_dict["images"]`` of each annotation's image, int64 (A,)."""
    return np.searchsorted([i["id"] for i in dataset.coco_dict["images"]], dataset.annotations.image_ids)


def object_sizes(cfg: CfgNode, dataset: DetectionDataset) -> np.ndarray:
    """Return (width, height) of all annotations in pixels of the network input, float64 (A, 2)."""
    sizes = [(image["height"], image["width"]) for image in dataset.coco_dict["images"]]
    limits = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    resized = {size: resize_size(size, *limits) for size in set(sizes)}
    factors = np.array([(resized[s][1] / s[1], resized[s][0] / s[0]) for s in sizes])
    return dataset.annotations.boxes[:, 2:] * factors[image_indices(dataset)]


def object_sides(cfg: CfgNode, dataset: DetectionDataset) -> np.ndarray:
    """Return the square root of each object's area in pixels of the network input; none of crowds."""
    is_object = ~dataset.annotations.is_crowd & dataset.annotations.has_area
    return np.sqrt(object_sizes(cfg, dataset)[is_object].prod(axis=1))


def anchor_sizes(cfg: CfgNode) -> np.ndarray:
    """Return (width, height) of the anchors of all levels in pixels of the network input, shape (S, 2)."""
    boxes = torch.cat(list(build_anchor_generator(cfg).cell_anchors))
    return torch.stack(box_ops.widths_heights(boxes), dim=1).double().numpy()


def best_anchor_iou(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return the largest IoU of each object with an anchor of the same centre, shape (A,).

    Args:
        sizes: (width, height) of the objects, shape (A, 2).
        anchors: (width, height) of the anchors of all levels, shape (S, 2).
    """
    objects, anchor_boxes = (
        box_ops.around(torch.zeros(len(s), 2).double(), *torch.from_numpy(s).double().unbind(1))
        for s in (sizes, anchors)
    )
    best = torch.zeros(len(objects)).double()
    for anchor in anchor_boxes:  # one size after the other: all pairs of a large dataset need gigabytes
        best = torch.maximum(best, box_ops.iou(objects, anchor))
    return best.numpy()


def count_objects(cfg: CfgNode, dataset: DetectionDataset) -> dict[str, Any]:
    """Count images, objects and sizes, as ``report.json`` has them.

    Crowds (difficult objects in VOC) count apart and in nothing else.
    """
    rows, images = dataset.annotations, dataset.coco_dict["images"]
    is_object = ~rows.is_crowd & rows.has_area
    categories, image_ids = rows.category_ids[is_object], rows.image_ids[is_object]
    pairs = np.unique(np.column_stack([categories, image_ids]), axis=0)[:, 0]
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    sizes = sorted(((i["width"], i["height"]) for i in images), key=lambda size: size[0] * size[1])
    histogram, _ = np.histogram(object_sides(cfg, dataset), SIZE_EDGES)
    ranges = [*(f"{a:g} to {b:g}" for a, b in pairwise(SIZE_EDGES[:-1])), f"{SIZE_EDGES[-2]:g} and more"]
    return {
        "num_images": len(images),
        "num_empty_images": len(images) - len(np.unique(rows.image_ids)),
        "num_crowds": int(rows.is_crowd.sum()),
        "num_objects": len(categories),
        "most_objects_per_image": int(np.unique(image_ids, return_counts=True)[1].max(initial=0)),
        "image_sizes": [sizes[0], sizes[-1]],
        "objects": {name: int(np.count_nonzero(categories == i)) for i, name in names.items()},
        "images_with_class": {name: int(np.count_nonzero(pairs == i)) for i, name in names.items()},
        "sides": dict(zip(ranges, histogram.tolist(), strict=True)),
    }
