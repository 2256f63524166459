"""A data set in COCO format."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from atss_core.config.catalog import DatasetEntry
from atss_core.data.annotations import parse_annotations, read_coco_json, some
from atss_core.data.batch import Sample
from atss_core.data.pictures import UnreadablePictureError, read_image
from atss_core.data.samplers import SampleKey
from atss_core.data.transforms import Transform
from atss_core.structures import BoxList
from atss_core.structures.boxes import from_xywh

# So many unreadable pictures in a row are not a few broken files, but a wrong folder.
_MAX_REPLACEMENTS = 100


class CocoDataset(Dataset[Sample]):
    """Pictures with boxes, described by a COCO annotation file.

    Args:
        entry: name and paths of the data set.
        transform: called as ``transform(picture, target, rng)``; see ``transforms.py``.
        training: drop pictures on which there is nothing to learn.
        skip_corrupt: replace (in training) or leave out (in testing) pictures that cannot be read.

    Attributes:
        name: of the data set.
        coco_dict: the parsed annotation file; for training without its annotations.
        has_annotations: False for a file that only lists pictures, such as test-dev.
        category_ids: ascending; label l in 1..C means ``category_ids[l - 1]``.
        class_names: the name of each label, in the same order.
        num_classes: C, without the background.
        image_ids: the pictures, ascending.
        image_sizes: (height, width) of each picture as the file tells, int64 (pictures, 2).

    Raises:
        FileNotFoundError: if the annotation file or the folder of pictures is missing.
        ValueError: if the annotation file has errors or no picture remains.
    """

    def __init__(
        self, entry: DatasetEntry, *, transform: Transform, training: bool, skip_corrupt: bool = False
    ) -> None:
        self.name = entry.name
        self.folder = Path(entry.images)
        self.transform = transform
        self.training = training
        self.skip_corrupt = skip_corrupt
        path = Path(entry.annotations)
        self.coco_dict = read_coco_json(entry.name, path)
        _check_folder(self.folder, self.name, path)
        categories = sorted(self.coco_dict["categories"], key=lambda category: category["id"])
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.class_names: list[str] = [category["name"] for category in categories]
        self.has_annotations = bool(self.coco_dict.get("annotations"))
        self._annotations = parse_annotations(self.coco_dict, path)
        if training:  # only testing needs them again, and every worker would hold a copy
            self.coco_dict.pop("annotations", None)
        self._images = self._select_images()
        if not self._images:
            raise ValueError(
                f"{path}: no picture has an object to learn from (not a crowd, larger than 1 pixel and inside"
                " the picture); check its annotations"
            )
        self.image_ids: list[int] = [image["id"] for image in self._images]
        self.image_sizes = np.array([(image["height"], image["width"]) for image in self._images])
        # The annotations of picture i are the rows bounds[i] to bounds[i + 1] of the first, second array.
        self._starts = np.searchsorted(self._annotations.image_ids, self.image_ids, side="left")
        self._ends = np.searchsorted(self._annotations.image_ids, self.image_ids, side="right")

    def __len__(self) -> int:
        return len(self._images)

    @property
    def num_classes(self) -> int:
        """Return the number of classes, without the background."""
        return len(self.category_ids)

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Return height / width of each picture, float64 (pictures,)."""
        return self.image_sizes[:, 0] / self.image_sizes[:, 1]

    def image_info(self, index: int) -> dict[str, Any]:
        """Return what the file tells about a picture: id, file_name, height, width in pixels, and more."""
        return self._images[index]

    def image_path(self, index: int) -> Path:
        """Return the path of a picture."""
        return self.folder / self._images[index]["file_name"]

    def target(self, index: int) -> BoxList:
        """Return the objects of a picture, in its original pixels, without crowds."""
        rows = self._annotations[self._starts[index] : self._ends[index]]
        rows = rows[~rows.is_crowd]
        labels = np.searchsorted(self.category_ids, rows.category_ids) + 1
        height, width = self.image_sizes[index].tolist()
        boxes = from_xywh(torch.from_numpy(rows.boxes).float())
        return BoxList(boxes, (height, width), labels=torch.from_numpy(labels)).clip().drop_empty()

    def load_image(self, index: int) -> Image.Image:
        """Read a picture as RGB in the orientation that its annotations are in.

        Raises:
            UnreadablePictureError: if the file is missing or broken.
            ValueError: if its size is not that of the annotation file.
        """
        path = self.image_path(index)
        try:
            stored = read_image(path, apply_exif=False)
            if self._has_annotated_size(stored, index):
                return stored
            upright = read_image(path, apply_exif=True)
        except UnreadablePictureError as error:
            raise UnreadablePictureError(self._describe_unreadable(index, error)) from error
        if self._has_annotated_size(upright, index):
            return upright
        height, width = self.image_sizes[index]
        raise ValueError(
            f"{path} is {stored.width}x{stored.height} pixels (width x height), but the annotations of image"
            f" {self.image_ids[index]} are for {width}x{height}; restore the picture or correct its entry"
        )

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """Load and transform a picture.

        Args:
            key: the picture, and the seed of its augmentation (0 if only an index is given). The sample
                depends on nothing else, so neither workers nor resuming change it.

        Raises:
            ValueError: if the picture cannot be read and is not to be skipped.
        """
        index, seed = key if isinstance(key, SampleKey) else (key, 0)
        skipped: list[str] = []
        for _ in range(min(len(self), _MAX_REPLACEMENTS)):
            try:
                image = self.load_image(index)
            except UnreadablePictureError as error:
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
            f"{len(skipped)} pictures of {self.name} in a row cannot be read; is {self.folder} the right"
            f" folder? The first: {skipped[0]}"
        )

    def _select_images(self) -> list[dict[str, Any]]:
        """Return the pictures by id; in training only those with something to learn from.

        The published rule drops pictures that have only boxes with a side of at most 1 pixel. It keeps those
        whose only boxes are crowds, or outside the picture, and then crashes for want of a box: dropped here.
        """
        images = sorted(self.coco_dict["images"], key=lambda image: image["id"])
        if not self.training:
            return images
        rows = self._annotations
        sizes = np.array([(image["width"], image["height"]) for image in images])
        owner = np.searchsorted([image["id"] for image in images], rows.image_ids)
        start, side = rows.boxes[:, :2], rows.boxes[:, 2:]
        sides_inside = np.minimum(start + side, sizes[owner]) - np.maximum(start, 0)
        is_usable = ~rows.is_crowd & (sides_inside > 1).all(axis=1)
        has_usable = np.zeros(len(images), dtype=bool)
        has_usable[owner[is_usable]] = True
        return [images[i] for i in np.flatnonzero(has_usable)]

    def _has_annotated_size(self, image: Image.Image, index: int) -> bool:
        return (image.height, image.width) == tuple(self.image_sizes[index].tolist())

    def _describe_unreadable(self, index: int, error: Exception) -> str:
        annotation_ids = self._annotations.ids[self._starts[index] : self._ends[index]]
        return (
            f"{error} (data set {self.name}, image id {self.image_ids[index]}, annotation ids"
            f" {some(annotation_ids)}); restore the file, or set DATALOADER.SKIP_CORRUPT True to skip such"
            " pictures"
        )


def _check_folder(folder: Path, name: str, annotations: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data set {name} needs the folder {folder} with the pictures of {annotations}, which does not"
            " exist; set DATASETS.DATA_DIR to the folder that holds the data sets, or link yours into it"
        )
