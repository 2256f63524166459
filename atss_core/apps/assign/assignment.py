"""Count what rules of assignment make of a data set: positives of its objects, and thresholds of ATSS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Areas in square pixels of the network's input, the lower end included: the sizes of COCO, but there in
# pixels of the image.
SIZES = {"S": (0.0, 32.0**2), "M": (32.0**2, 96.0**2), "L": (96.0**2, np.inf), "all": (0.0, np.inf)}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
THRESHOLD_EDGES = np.linspace(0, 1, 21)


@dataclass(frozen=True)
class AssignedObjects:
    """What became of each object of some images.

    Attributes:
        areas: square pixels of the network's input, float64 (G,).
        positives: rule -> positive anchors of each object, int64 (G,).
        thresholds: mean plus standard deviation of the IoUs of the candidates of ATSS, float64 (G,).
    """

    areas: np.ndarray
    positives: Mapping[str, np.ndarray]
    thresholds: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)

    def is_of_size(self, size: str) -> np.ndarray:
        """Tell which objects are of one of ``SIZES``, bool (G,)."""
        low, high = SIZES[size]
        return (self.areas >= low) & (self.areas < high)


def join(parts: Sequence[AssignedObjects]) -> AssignedObjects:
    """Join the objects of at least one image to one list."""
    return AssignedObjects(
        np.concatenate([part.areas for part in parts]),
        {rule: np.concatenate([part.positives[rule] for part in parts]) for rule in parts[0].positives},
        np.concatenate([part.thresholds for part in parts]),
    )


def summarize_positives(objects: AssignedObjects) -> dict[str, dict[str, dict[str, Any]]]:
    """Return rule -> size -> number of objects, their mean number of positives, and how many have none.

    Means and shares of no objects are None.
    """
    return {
        rule: {size: _summarize(counts[objects.is_of_size(size)]) for size in SIZES}
        for rule, counts in objects.positives.items()
    }


def _summarize(counts: np.ndarray) -> dict[str, Any]:
    num_without = int(np.count_nonzero(counts == 0))
    return {
        "objects": len(counts),
        "positives_per_object": float(counts.mean()) if len(counts) else None,
        "without_positive": num_without,
        "share_without_positive": num_without / len(counts) if len(counts) else None,
    }


def summarize_thresholds(objects: AssignedObjects) -> dict[str, dict[str, Any]]:
    """Return size -> quantiles and histogram of the thresholds of ATSS; no quantiles of no objects."""
    return {size: _distribution(objects.thresholds[objects.is_of_size(size)]) for size in SIZES}


def _distribution(values: np.ndarray) -> dict[str, Any]:
    quantiles = np.quantile(values, QUANTILES).tolist() if len(values) else [None] * len(QUANTILES)
    histogram, _ = np.histogram(values.clip(0, 1), THRESHOLD_EDGES)
    return {
        "objects": len(values),
        "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
        "histogram": histogram.tolist(),
    }


def choose_objects(areas: np.ndarray, positives: np.ndarray, most: int) -> list[int]:
    """Choose objects of an image to look at: some without a positive, then from small to large.

    Args:
        areas: of all objects, shape (G,).
        positives: their numbers of positives, shape (G,).
        most: how many to choose; a third of them may be without a positive for that alone.

    Returns:
        Indices by rising area.
    """
    order = np.argsort(areas, kind="stable")
    chosen = order[positives[order] == 0][: max(most // 3, 1)]
    others = order[~np.isin(order, chosen)]
    steps = np.linspace(0, len(others) - 1, min(most - len(chosen), len(others)))
    chosen = np.concatenate([chosen, others[steps.round().astype(int)]])
    return chosen[np.argsort(areas[chosen], kind="stable")].tolist()
