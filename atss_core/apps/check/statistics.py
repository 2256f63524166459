"""Count what is in a data set, and how its objects fit the anchors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from atss_core.apps.check.checks import THINNEST, Defect
from atss_core.data.dataset import DetectionDataset
from atss_core.data.datasets.coco import some
from atss_core.data.transforms import resize_size

# Sides of objects in pixels of the network's input, the edges of the histogram.
SIZE_EDGES = (0, 4, 8, 16, 32, 64, 128, 256, 512, np.inf)
# An object fits an anchor if their IoU is at least this when both have the same centre: sides up to 4 times
# as long or as short.
WORST_FIT = 1 / 16


@dataclass(frozen=True)
class Statistics:
    """What is in a data set. Crowds (difficult objects in VOC) count apart and in nothing else.

    Attributes:
        layout: "COCO", "VOC" or "YOLO".
        num_images: images.
        num_empty: images without any annotation.
        num_crowds: crowds, ignore regions or difficult objects.
        objects: of each class.
        images: images with each class.
        sides: the square root of each object's area, in pixels of the network's input.
        most_in_image: objects of the fullest image.
        image_sizes: smallest and largest (width, height) of the images by area, in pixels.
    """

    layout: str
    num_images: int
    num_empty: int
    num_crowds: int
    objects: dict[str, int]
    images: dict[str, int]
    sides: np.ndarray
    most_in_image: int
    image_sizes: tuple[tuple[int, int], tuple[int, int]]

    @property
    def num_objects(self) -> int:
        """Return the number of objects of all classes."""
        return sum(self.objects.values())

    def size_histogram(self) -> dict[str, int]:
        """Return the number of objects in each range of sides, in pixels of the network's input."""
        counts, _ = np.histogram(self.sides, SIZE_EDGES)
        names = [f"{low:g} to {high:g}" for low, high in pairwise(SIZE_EDGES[:-1])]
        return dict(zip([*names, f"{SIZE_EDGES[-2]:g} and more"], counts.tolist(), strict=True))


def network_sides(dataset: DetectionDataset, min_size: int, max_size: int) -> np.ndarray:
    """Return (width, height) of all annotations in pixels of the network's input, float64 (A, 2).

    Args:
        dataset: the data set.
        min_size: short side of the network's input.
        max_size: cap of its long side.
    """
    images = dataset.coco_dict["images"]
    sizes = [(image["height"], image["width"]) for image in images]
    resized = {size: resize_size(size, min_size, max_size) for size in set(sizes)}
    factors = np.array([(resized[s][1] / s[1], resized[s][0] / s[0]) for s in sizes])
    owner = np.searchsorted([image["id"] for image in images], dataset.annotations.image_ids)
    return dataset.annotations.boxes[:, 2:] * factors[owner]


def count_objects(dataset: DetectionDataset, sides: np.ndarray) -> Statistics:
    """Count images, objects and sizes.

    Args:
        dataset: the data set.
        sides: as ``network_sides`` returns.
    """
    rows, images = dataset.annotations, dataset.coco_dict["images"]
    is_object = ~rows.is_crowd & rows.has_area
    categories, owners = rows.category_ids[is_object], rows.image_ids[is_object]
    pairs = np.unique(np.column_stack([categories, owners]), axis=0)[:, 0]
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    widths_heights = sorted(((i["width"], i["height"]) for i in images), key=lambda size: size[0] * size[1])
    return Statistics(
        layout=dataset.layout,
        num_images=len(images),
        num_empty=len(images) - len(np.unique(rows.image_ids)),
        num_crowds=int(rows.is_crowd.sum()),
        objects={name: int(np.count_nonzero(categories == i)) for i, name in names.items()},
        images={name: int(np.count_nonzero(pairs == i)) for i, name in names.items()},
        sides=np.sqrt(sides[is_object].prod(axis=1)),
        most_in_image=int(np.unique(owners, return_counts=True)[1].max(initial=0)),
        image_sizes=(widths_heights[0], widths_heights[-1]),
    )


def crowded_images(
    dataset: DetectionDataset, *, num_of_class: int, num_of_image: int, num_of_level: int
) -> list[Defect]:
    """Report images with more objects than detections count: even a perfect detector misses some.

    Args:
        dataset: the data set.
        num_of_class: detections of a class per image that the metrics of COCO count.
        num_of_image: TEST.DETECTIONS_PER_IMG, 0 for all.
        num_of_level: MODEL.ATSS.PRE_NMS_TOP_N.
    """
    rows, images = dataset.annotations, dataset.coco_dict["images"]
    is_object = ~rows.is_crowd & rows.has_area
    owner = np.searchsorted([image["id"] for image in images], rows.image_ids[is_object])
    pairs = np.column_stack([owner, rows.category_ids[is_object]])
    pairs, of_class = np.unique(pairs, axis=0, return_counts=True)
    of_image = (np.arange(len(images)), np.bincount(owner, minlength=len(images)))
    found = []
    for limit, (owner, counts), what, consequence in (
        (
            num_of_class,
            (pairs[:, 0], of_class),
            "objects of a class",
            "the metrics of COCO count no more detections of a class per image (maxDets), so that AP stays"
            " below 100 even if all are found; cut such images into tiles, or compare AP between detectors",
        ),
        (
            num_of_image or np.inf,
            of_image,
            "objects",
            "TEST.DETECTIONS_PER_IMG keeps no more detections per image; raise it, or set it to 0 for all",
        ),
        (
            num_of_level,
            of_image,
            "objects",
            "MODEL.ATSS.PRE_NMS_TOP_N lets no more candidates per level into the NMS; raise it",
        ),
    ):
        order = np.argsort(-counts, kind="stable")
        crowded = list(dict.fromkeys(owner[order[counts[order] > limit]].tolist()))
        if crowded:
            where = f"up to {counts.max()} in {some([images[i]['file_name'] for i in crowded])}"
            message = f"{len(crowded)} image(s) have more than {limit} {what} ({where}): {consequence}"
            found.append(Defect("more objects than detections", message, tuple(crowded)))
    return found


def best_fit(sides: np.ndarray, anchor_sides: np.ndarray) -> np.ndarray:
    """Return the IoU of each object with the anchor that fits it best, if both had the same centre.

    Args:
        sides: (width, height) of objects, shape (A, 2).
        anchor_sides: of the anchors of all levels, shape (S, 2).

    Returns:
        Shape (A,); 0 for objects without area.
    """
    best = np.zeros(len(sides))
    sides = np.maximum(sides, 0)
    for anchor in anchor_sides:
        overlap = np.minimum(sides, anchor).prod(axis=1)
        best = np.maximum(best, overlap / (sides.prod(axis=1) + anchor.prod() - overlap))
    return best


def unfit_objects(dataset: DetectionDataset, sides: np.ndarray, anchor_sides: np.ndarray) -> list[Defect]:
    """Report the objects that no anchor size fits, if there are any.

    Args:
        dataset: the data set.
        sides: as ``network_sides`` returns.
        anchor_sides: (width, height) of the anchors of all levels, shape (S, 2).
    """
    rows = dataset.annotations
    is_object = ~rows.is_crowd & (rows.boxes[:, 2:] > THINNEST).all(axis=1)  # thinner ones are not used
    fit = best_fit(sides, anchor_sides)
    unfit = np.flatnonzero(is_object & (fit < WORST_FIT))
    unfit = unfit[np.argsort(fit[unfit], kind="stable")]
    if not len(unfit):
        return []
    images = dataset.coco_dict["images"]
    owner = np.searchsorted([image["id"] for image in images], rows.image_ids[unfit])
    shown = list(dict.fromkeys(owner.tolist()))
    lengths, anchor_lengths = (np.sqrt(s.prod(axis=1)) for s in (sides[unfit], anchor_sides))
    share = 100 * len(unfit) / max(int(np.count_nonzero(~rows.is_crowd)), 1)
    message = (
        f"{len(unfit)} object(s), {share:.1f}%, are far from every anchor size: sides of"
        f" {lengths.min():.0f} to {lengths.max():.0f} pixels on the network's input, anchors of"
        f" {anchor_lengths.min():.0f} to {anchor_lengths.max():.0f} (in"
        f" {some([images[i]['file_name'] for i in shown])});"
        " change INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST, or MODEL.ATSS.ANCHOR_SIZES"
    )
    return [Defect("objects that no anchor size fits", message, tuple(shown), tuple(unfit.tolist()))]
