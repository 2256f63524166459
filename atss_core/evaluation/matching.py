"""Match detections to objects as COCO does, for all images at once, so that errors can be looked at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_OF_A_CLASS = 100  # detections of a class in an image that count, the best; COCO's limit
PAIRS_AT_ONCE = 1_000_000  # bounds the memory
NOBODY = -1


@dataclass(frozen=True)
class Truths:
    """The objects of a data set, by image.

    Attributes:
        boxes: (x, y, width, height) in pixels of the images, float64 (G, 4).
        images: number of the image of each, int64 (G,), ascending.
        classes: from 0, int64 (G,).
        is_crowd: detections on these count neither as right nor as wrong, bool (G,).
    """

    boxes: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def read(
        cls, entries: Sequence[dict[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]
    ) -> Truths:
        """Take COCO annotations; images and classes are numbered as they are listed."""
        boxes, images, classes = _columns(entries, image_ids, category_ids)
        is_crowd = np.array([bool(entry["iscrowd"]) for entry in entries], dtype=bool)
        order = np.argsort(images, kind="stable")
        return cls(boxes[order], images[order], classes[order], is_crowd[order])


@dataclass(frozen=True)
class Found:
    """The detections of a data set, by image and falling score; at most ``MOST_OF_A_CLASS``.

    Attributes:
        boxes: (x, y, width, height) in pixels of the images, float64 (D, 4).
        images: number of the image of each, int64 (D,), ascending.
        classes: from 0, int64 (D,).
        scores: float64 (D,).
        ranks: of the score among those of the class in the image, from 0, int64 (D,).
    """

    boxes: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def read(
        cls, entries: Sequence[dict[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]
    ) -> Found:
        """Take COCO results; images and classes are numbered as they are listed."""
        boxes, images, classes = _columns(entries, image_ids, category_ids)
        scores = np.array([entry["score"] for entry in entries], dtype=np.float64)
        order = np.lexsort((-scores, images))
        boxes, images, classes, scores = (column[order] for column in (boxes, images, classes, scores))
        ranks = rank_in(images * len(category_ids) + classes)
        kept = ranks < MOST_OF_A_CLASS
        return cls(boxes[kept], images[kept], classes[kept], scores[kept], ranks[kept])


@dataclass(frozen=True)
class Pairs:
    """Detections with the objects of their image that they overlap, the preferred object of each last.

    Attributes:
        found: rows of detections, int64 (P,), ascending.
        ground_truth: rows of objects, int64 (P,).
        ious: float64 (P,); with a crowd the share of the detection that is inside.
    """

    found: np.ndarray
    ground_truth: np.ndarray
    ious: np.ndarray

    def __len__(self) -> int:
        return len(self.ious)

    def __getitem__(self, chosen: np.ndarray) -> Pairs:
        return Pairs(self.found[chosen], self.ground_truth[chosen], self.ious[chosen])


def rank_in(groups: np.ndarray) -> np.ndarray:
    """Count for each row the rows before it of the same group, int64."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]] if len(groups) else np.zeros(0, dtype=bool)
    starts = np.flatnonzero(is_first)
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    return ranks


def find_pairs(found: Found, ground_truth: Truths, least_iou: float) -> Pairs:
    """Return the pairs of a detection and an object in one image with at least an IoU, of any classes."""
    parts = [
        _overlapping(found, ground_truth, rows, others, least_iou)
        for rows, others in _all_pairs(found, ground_truth)
    ]
    rows, others, ious = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    # COCO prefers objects to crowds, then the larger IoU, then the later object.
    order = np.lexsort((others, ious, ~ground_truth.is_crowd[others], rows))
    return Pairs(rows[order], others[order], ious[order])


def match(pairs: Pairs, ranks: np.ndarray, ground_truth: Truths, least_iou: float) -> np.ndarray:
    """Give each detection the best object that no better one has taken, as COCO does.

    Args:
        pairs: those that may match.
        ranks: of all detections among those that compete for the same objects, int64 (D,).
        ground_truth: the objects.
        least_iou: that makes a match.

    Returns:
        The object of each detection or ``NOBODY``, int64 (D,). A crowd may have many detections.
    """
    owner = np.full(len(ranks), NOBODY)
    is_taken = np.zeros(len(ground_truth), dtype=bool)
    pairs = pairs[pairs.ious >= min(least_iou, 1 - 1e-10)]  # COCO's rule for an IoU of 1
    rank = ranks[pairs.found]
    pairs = pairs[np.argsort(rank, kind="stable")]
    bounds = np.cumsum(np.bincount(rank, minlength=1)).tolist()
    # Detections of the same rank do not compete: all of them choose at once.
    for start, end in itertools.pairwise([0, *bounds]):
        rows, others = pairs.found[start:end], pairs.ground_truth[start:end]
        is_free = ~is_taken[others]
        owner[rows[is_free]] = others[is_free]  # of several, the last stays: the preferred one
        chosen = owner[rows[is_free]]
        is_taken[chosen[~ground_truth.is_crowd[chosen]]] = True
    return owner


def _columns(
    entries: Sequence[dict[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes, numbers of images and numbers of classes."""
    image_numbers = {image_id: i for i, image_id in enumerate(image_ids)}
    class_numbers = {category_id: i for i, category_id in enumerate(category_ids)}
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    images = np.array([image_numbers[entry["image_id"]] for entry in entries], dtype=np.int64)
    return boxes, images, np.array([class_numbers[entry["category_id"]] for entry in entries], dtype=np.int64)


def _all_pairs(found: Found, ground_truth: Truths) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows of detections with rows of objects of the same image, a part of all pairs at a time."""
    first = np.searchsorted(ground_truth.images, found.images, side="left")
    counts = np.searchsorted(ground_truth.images, found.images, side="right") - first
    parts = np.cumsum(counts) // PAIRS_AT_ONCE
    for part in range(int(parts[-1]) + 1 if len(parts) else 1):
        rows = np.flatnonzero(parts == part)
        repeated = np.repeat(rows, counts[rows])
        offsets = np.arange(len(repeated)) - np.repeat(np.cumsum(counts[rows]) - counts[rows], counts[rows])
        yield repeated, first[repeated] + offsets


def _overlapping(
    found: Found, ground_truth: Truths, rows: np.ndarray, others: np.ndarray, least_iou: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the pairs with at least an IoU; returns rows of detections, rows of objects and IoUs."""
    first, second = found.boxes[rows], ground_truth.boxes[others]
    start = np.maximum(first[:, :2], second[:, :2])
    end = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    sides = np.maximum(end - start, 0)
    overlap = sides[:, 0] * sides[:, 1]
    own, other = first[:, 2] * first[:, 3], second[:, 2] * second[:, 3]
    whole = np.where(ground_truth.is_crowd[others], own, own + other - overlap)
    ious = np.divide(overlap, whole, out=np.zeros_like(overlap), where=overlap > 0)
    kept = ious >= least_iou
    return rows[kept], others[kept], ious[kept]
