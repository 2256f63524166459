"""A data set of images with boxes."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from atss_core.config.catalog import DatasetEntry
from atss_core.data.batch import Sample
from atss_core.data.datasets.coco import parse_annotations, some
from atss_core.data.datasets.formats import read_source
from atss_core.data.images import MAX_PIXELS, UnreadableImageError, read_image
from atss_core.data.samplers import SampleKey
from atss_core.data.transforms import Transform
from atss_core.structures import BoxList
from atss_core.structures.boxes import from_xywh

# So many unreadable images in a row are not a few broken files, but a wrong folder.
_MAX_REPLACEMENTS = 100

NOTHING_TO_LEARN = (
    "{}: no image has an object to learn from (not a crowd, larger than 1 pixel and inside the image);"
    " check its annotations"
)


class DetectionDataset(Dataset[Sample]):
    """Images with boxes, in any layout that ``formats.py`` reads.

    Args:
        entry: name and paths of the data set.
        transform: called as ``transform(image, target, rng)``; see ``transforms.py``.
        training: drop images on which there is nothing to learn.
        filter_empty: in training, images without any annotation are among these.
        skip_corrupt: replace (in training) or leave out (in testing) images that cannot be read.
        max_pixels: larger images cannot be read.
        grey_bits: of grey values of more than 8 bits, see ``to_rgb``.

    Attributes:
        name: of the data set.
        layout: "COCO", "VOC" or "YOLO".
        path: its annotation file or folder.
        folder: what the names of images start from.
        coco_dict: the data set in the form of a COCO file, images by id; in training without annotations.
        is_upright: whether the layout says that boxes are for images turned as their EXIF data says.
        warnings: what is odd about the files, a line each.
        annotations: all objects as the files tell them, whether they are used or not.
        has_annotations: False for a file that only lists images, such as test-dev.
        category_ids: ascending; label l in 1..C means ``category_ids[l - 1]``.
        class_names: the name of each label, in the same order.
        num_classes: C, without the background.
        image_ids: the images, ascending.
        image_sizes: (height, width) of each image as the file tells, int64 (images, 2).

    Raises:
        FileNotFoundError: if the annotation file or the folder of images is missing.
        ValueError: if the annotation file has errors or no image remains.
    """

    def __init__(
        self,
        entry: DatasetEntry,
        *,
        transform: Transform,
        training: bool,
        filter_empty: bool = True,
        skip_corrupt: bool = False,
        max_pixels: int = MAX_PIXELS,
        grey_bits: int = 0,
    ) -> None:
        source = read_source(entry)
        self.name = entry.name
        self.layout = source.layout
        self.path = source.path
        self.folder = source.images
        self.warnings = source.warnings
        self.is_upright = source.is_upright
        self.coco_dict = source.tree
        self.coco_dict["images"].sort(key=lambda image: image["id"])
        self.transform = transform
        self.training = training
        self.skip_corrupt = skip_corrupt
        self.max_pixels = max_pixels
        self.grey_bits = grey_bits
        categories = sorted(self.coco_dict["categories"], key=lambda category: category["id"])
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.class_names: list[str] = [category["name"] for category in categories]
        self.has_annotations = bool(self.coco_dict.get("annotations"))
        self.annotations = parse_annotations(self.coco_dict, self.path)
        has_area = self.annotations.has_area
        self._usable = self.annotations if has_area.all() else self.annotations[np.flatnonzero(has_area)]
        if training:  # only testing needs them again, and every worker would hold a copy
            self.coco_dict.pop("annotations", None)
        self._images = self._select_images(filter_empty)
        if not self._images:
            raise ValueError("; ".join((NOTHING_TO_LEARN.format(self.path), *self.warnings)))
        self.image_ids: list[int] = [image["id"] for image in self._images]
        self.image_sizes = np.array([(image["height"], image["width"]) for image in self._images])
        # The annotations of image i are the rows bounds[i] to bounds[i + 1] of the first, second array.
        self._starts = np.searchsorted(self._usable.image_ids, self.image_ids, side="left")
        self._ends = np.searchsorted(self._usable.image_ids, self.image_ids, side="right")

    def __len__(self) -> int:
        return len(self._images)

    @property
    def num_classes(self) -> int:
        """Return the number of classes, without the background."""
        return len(self.category_ids)

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Return height / width of each image, float64 (images,)."""
        return self.image_sizes[:, 0] / self.image_sizes[:, 1]

    def image_info(self, index: int) -> dict[str, Any]:
        """Return what the file tells about an image: id, file_name, height, width in pixels, and more."""
        return self._images[index]

    def image_path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.folder / self._images[index]["file_name"]

    def target(self, index: int) -> BoxList:
        """Return the objects of an image, in its original pixels, without crowds."""
        rows = self._usable[self._starts[index] : self._ends[index]]
        rows = rows[~rows.is_crowd]
        labels = np.searchsorted(self.category_ids, rows.category_ids) + 1
        height, width = self.image_sizes[index].tolist()
        boxes = from_xywh(torch.from_numpy(rows.boxes).float())
        return BoxList(boxes, (height, width), labels=torch.from_numpy(labels)).clip().drop_empty()

    def load_image(self, index: int) -> Image.Image:
        """Read an image as RGB, upright wherever the upright image has the size that the file tells.

        Raises:
            UnreadableImageError: if the file is missing or broken.
            ValueError: if its size is not that of the annotation file.
        """
        path = self.image_path(index)
        try:
            upright = read_image(path, True, self.max_pixels, self.grey_bits)
            if self._has_annotated_size(upright, index):
                return upright
            stored = read_image(path, False, self.max_pixels, self.grey_bits)
        except UnreadableImageError as error:
            raise UnreadableImageError(self._describe_unreadable(index, error)) from error
        if self._has_annotated_size(stored, index):
            return stored
        height, width = self.image_sizes[index]
        raise ValueError(
            f"{path} is {stored.width}x{stored.height} pixels (width x height), but the annotations of image"
            f" {self.image_ids[index]} are for {width}x{height}; restore the image or correct its entry"
        )

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """Load and transform an image.

        Args:
            key: the image, and the seed of its augmentation (0 if only an index is given). The sample
                depends on nothing else, so neither workers nor resuming change it.

        Raises:
            ValueError: if the image cannot be read and is not to be skipped.
        """
        index, seed = key if isinstance(key, SampleKey) else (key, 0)
        skipped: list[str] = []
        for _ in range(min(len(self), _MAX_REPLACEMENTS)):
            try:
                image = self.load_image(index)
            except UnreadableImageError as error:
                if not self.skip_corrupt:
                    raise
                skipped.append(str(error).rsplit(";", 1)[0])  # without the advice to skip it
                if not self.training:
                    return Sample(None, self.target(index), self.image_ids[index], tuple(skipped))
                index = (index + 1) % len(self)
                continue
            tensor, target = self.transform(image, self.target(index), Random(seed))
            assert target is not None
            return Sample(tensor, target, self.image_ids[index], tuple(skipped))
        raise ValueError(
            f"{len(skipped)} images of {self.name} in a row cannot be read; is {self.folder} the right"
            f" folder? The first: {skipped[0]}"
        )

    def _select_images(self, filter_empty: bool) -> list[dict[str, Any]]:
        """Return the images by id; in training only those with something to learn from.

        The published rule drops images that have only boxes with a side of at most 1 pixel. It keeps those
        whose only boxes are crowds, or outside the image, and then crashes for want of a box: dropped here.
        """
        images = self.coco_dict["images"]
        if not self.training:
            return images
        rows = self._usable
        ids = [image["id"] for image in images]
        sizes = np.array([(image["width"], image["height"]) for image in images])
        owner = np.searchsorted(ids, rows.image_ids)
        start, side = rows.boxes[:, :2], rows.boxes[:, 2:]
        sides_inside = np.minimum(start + side, sizes[owner]) - np.maximum(start, 0)
        is_usable = ~rows.is_crowd & (sides_inside > 1).all(axis=1)
        is_kept = np.zeros(len(images), dtype=bool)
        is_kept[owner[is_usable]] = True
        if not filter_empty and is_kept.any():
            is_kept |= ~np.isin(ids, self.annotations.image_ids)
        return [images[i] for i in np.flatnonzero(is_kept)]

    def _has_annotated_size(self, image: Image.Image, index: int) -> bool:
        return (image.height, image.width) == tuple(self.image_sizes[index].tolist())

    def _describe_unreadable(self, index: int, error: Exception) -> str:
        annotation_ids = self._usable.ids[self._starts[index] : self._ends[index]]
        return (
            f"{error} (data set {self.name}, image id {self.image_ids[index]}, annotation ids"
            f" {some(annotation_ids)}); restore the file, or set DATALOADER.SKIP_CORRUPT True to skip such"
            " images"
        )
