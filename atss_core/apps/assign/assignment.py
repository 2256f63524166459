"""Assign anchors with several assigners, and count positives and ATSS thresholds of a dataset's objects."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from atss_core.modeling.assigners import Assigner
from atss_core.modeling.build import build_assigner

ATSS, ATSS_AT_LEAST_ONE = "ATSS", "ATSS + AT_LEAST_ONE"
# Areas in square pixels of the network input, the lower end included: COCO has the same sizes, in pixels of
# the image.
SIZES = {"S": (0.0, 32.0**2), "M": (32.0**2, 96.0**2), "L": (96.0**2, np.inf), "all": (0.0, np.inf)}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
THRESHOLD_EDGES = np.linspace(0, 1, 21)


def build_assigners(cfg: CfgNode) -> dict[str, Assigner]:
    """Build ATSS with and without AT_LEAST_ONE and the assigners it is compared with, whatever cfg chooses.

    Limits that belong to one assigner are left out of the others.
    """
    assigners = {}
    for name in (ATSS, ATSS_AT_LEAST_ONE, "SSC", "IoU", "TOPK"):
        own = cfg.clone()
        own.defrost()
        own.MODEL.ATSS.POSITIVE_TYPE = name.split(" ")[0]
        own.MODEL.ATSS.AT_LEAST_ONE = name == ATSS_AT_LEAST_ONE
        if name == "SSC":
            own.MODEL.ATSS.POSITIVES_IN_BOX = True
        else:
            own.MODEL.ATSS.CENTER_SAMPLING_RADIUS = 0.0
        assigners[name] = build_assigner(own)
    return assigners


def count_positives(matched: Tensor, num_objects: int) -> np.ndarray:
    """Return the number of positive anchors of each object, int64 (G,), from the object of each anchor."""
    return torch.bincount(matched[matched >= 0], minlength=num_objects).numpy()


def summarize(
    areas: np.ndarray, positives: Mapping[str, np.ndarray], thresholds: np.ndarray
) -> dict[str, Any]:
    """Summarize the objects of a dataset by assigner and size; means and quantiles of no objects are None.

    Args:
        areas: square pixels of the network input, shape (G,).
        positives: assigner -> positive anchors of each object, int64 (G,).
        thresholds: mean plus standard deviation of the IoUs of each object's ATSS candidates, shape (G,).
    """
    masks = {size: (areas >= low) & (areas < high) for size, (low, high) in SIZES.items()}
    return {
        "assigners": {
            name: {size: _positives(counts[mask]) for size, mask in masks.items()}
            for name, counts in positives.items()
        },
        "thresholds": {size: _thresholds(thresholds[mask]) for size, mask in masks.items()},
        "threshold_edges": THRESHOLD_EDGES.round(6).tolist(),
    }


def _positives(counts: np.ndarray) -> dict[str, Any]:
    unmatched = int(np.count_nonzero(counts == 0))
    return {
        "objects": len(counts),
        "positives_per_object": float(counts.mean()) if len(counts) else None,
        "without_positive": unmatched,
        "share_without_positive": unmatched / len(counts) if len(counts) else None,
    }


def _thresholds(values: np.ndarray) -> dict[str, Any]:
    quantiles = np.quantile(values, QUANTILES).tolist() if len(values) else [None] * len(QUANTILES)
    return {
        "objects": len(values),
        "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
        "histogram": np.histogram(values.clip(0, 1), THRESHOLD_EDGES)[0].tolist(),
    }


def choose_objects(areas: np.ndarray, positives: np.ndarray, most: int) -> list[int]:
    """Choose objects of an image: up to a third for having no positive, the others from small to large.

    Args:
        areas: of all objects, shape (G,).
        positives: positive anchors of each, shape (G,).
        most: number to choose.

    Returns:
        Indices by rising area.
    """
    order = np.argsort(areas, kind="stable")
    chosen = order[positives[order] == 0][: max(most // 3, 1)]
    others = order[~np.isin(order, chosen)]
    steps = np.linspace(0, len(others) - 1, min(most - len(chosen), len(others)))
    chosen = np.concatenate([chosen, others[steps.round().astype(int)]])
    return chosen[np.argsort(areas[chosen], kind="stable")].tolist()


def choose_images(unmatched: Mapping[int, int], most: int) -> list[int]:
    """Choose images: half of them for the most unmatched objects, the others at random.

    Args:
        unmatched: image -> objects without a positive.
        most: number to choose.
    """
    worst = sorted((i for i in unmatched if unmatched[i]), key=lambda i: (-unmatched[i], i))[: most // 2]
    others = [i for i in unmatched if i not in worst]
    return sorted(worst + Random(0).sample(others, min(most - len(worst), len(others))))
