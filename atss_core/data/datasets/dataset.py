"""A dataset of images with boxes, from files in COCO, VOC or YOLO format."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset

from atss_core.config.catalog import DatasetEntry
from atss_core.data.datasets.coco import check_coco_tree, parse_annotations, read_coco_json, summarize
from atss_core.data.datasets.voc import is_voc, read_voc
from atss_core.data.datasets.yolo import is_yolo, read_yolo
from atss_core.data.images import MAX_PIXELS, UnreadableImageError, read_image
from atss_core.data.loader import Sample
from atss_core.data.samplers import SampleKey
from atss_core.data.transforms import Transform
from atss_core.structures import BoxList
from atss_core.structures.boxes import from_xywh

# So many unreadable images in a row are not a few broken files, but a wrong folder.
_MAX_REPLACEMENTS = 100

NO_USABLE_OBJECT = (
    "{}: no image has an object to learn from (not a crowd, larger than 1 pixel and inside the image);"
    " check its annotations"
)


class DetectionDataset(Dataset[Sample]):
    """Images with boxes.

    Args:
        entry: name and paths of the dataset.
        transform: called as ``transform(image, target, rng)``; see ``transforms.py``.
        training: drop images without a usable object.
        filter_empty: in training, drop images without any annotation as well.
        skip_corrupt: replace (in training) or leave out (in evaluation) images that cannot be read.
        max_pixels: larger images cannot be read.
        grey_bits: of grey values of more than 8 bits, see ``to_rgb``.

    Attributes:
        name: of the dataset.
        format: "COCO", "VOC" or "YOLO".
        path: its annotation file or folder.
        folder: the names of images are relative to it.
        coco_dict: the content as of a COCO file, images by id; in training without annotations.
        is_upright: whether the format defines boxes on images turned as their EXIF data says.
        warnings: problems of the files that do not prevent their use, a line each.
        annotations: all objects of the files, whether they are used or not.
        has_annotations: False for a file that only lists images, such as test-dev.
        category_ids: ascending; label l in 1..C means ``category_ids[l - 1]``.
        class_names: the name of each label, in the same order.
        num_classes: C, without the background.
        image_ids: the images, ascending.
        image_sizes: (height, width) of each image in the annotations, int64 (images, 2).
        aspect_ratios: height / width of each image, float64 (images,).

    Raises:
        FileNotFoundError: if the annotation file or the folder of images is missing.
        ValueError: if the format is unknown, the annotation file has errors or no image remains.
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
        self.name = entry.name
        self.path = entry.annotations
        self.format, self.coco_dict, self.folder, self.warnings = _read_files(entry)
        check_coco_tree(self.coco_dict, self.path)
        self.is_upright = self.format == "YOLO"
        self.coco_dict["images"].sort(key=lambda image: image["id"])
        self.transform = transform
        self.training = training
        self.skip_corrupt = skip_corrupt
        self.max_pixels = max_pixels
        self.grey_bits = grey_bits
        categories = sorted(self.coco_dict["categories"], key=lambda category: category["id"])
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.class_names: list[str] = [category["name"] for category in categories]
        self.num_classes = len(categories)
        self.has_annotations = bool(self.coco_dict.get("annotations"))
        self.annotations = parse_annotations(self.coco_dict, self.path)
        has_area = self.annotations.has_area
        self._usable = self.annotations if has_area.all() else self.annotations[np.flatnonzero(has_area)]
        if training:  # only evaluation needs them again, and every worker would hold a copy
            self.coco_dict.pop("annotations", None)
        self._images = self._select_images(filter_empty)
        if not self._images:
            raise ValueError("; ".join((NO_USABLE_OBJECT.format(self.path), *self.warnings)))
        self.image_ids: list[int] = [image["id"] for image in self._images]
        self.image_sizes = np.array([(image["height"], image["width"]) for image in self._images])
        self.aspect_ratios = self.image_sizes[:, 0] / self.image_sizes[:, 1]
        # The usable annotations of image i are the rows starts[i] to ends[i].
        self._starts = np.searchsorted(self._usable.image_ids, self.image_ids, side="left")
        self._ends = np.searchsorted(self._usable.image_ids, self.image_ids, side="right")

    def __len__(self) -> int:
        return len(self._images)

    def image_info(self, index: int) -> dict[str, Any]:
        """Return the entry of an image: id, file_name, height, width in pixels, and more."""
        return self._images[index]

    def image_path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.folder / self._images[index]["file_name"]

    def target(self, index: int) -> BoxList:
        """Return the objects of an image, in its original pixels, without crowds."""
        rows = self._usable[self._starts[index] : self._ends[index]]
        rows = rows[~rows.is_crowd]
        return self._clip(index, rows.boxes, np.searchsorted(self.category_ids, rows.category_ids) + 1)

    def target_rows(self, index: int) -> np.ndarray:
        """Return the row of ``annotations`` of each object of ``target(index)``, int64 (G,)."""
        image_id, image_ids = self.image_ids[index], self.annotations.image_ids
        start, end = np.searchsorted(image_ids, image_id), np.searchsorted(image_ids, image_id, side="right")
        rows = self.annotations[start:end]
        chosen = np.flatnonzero(rows.has_area & ~rows.is_crowd)
        labels = self._clip(index, rows.boxes[chosen], start + chosen).labels
        assert labels is not None
        return labels.numpy()

    def _clip(self, index: int, boxes: np.ndarray, labels: np.ndarray) -> BoxList:
        height, width = self.image_sizes[index].tolist()
        corners = from_xywh(torch.from_numpy(boxes).float())
        return BoxList(corners, (height, width), labels=torch.from_numpy(labels)).clip().drop_empty()

    def load_image(self, index: int) -> Image.Image:
        """Read an image as RGB, turned upright if the upright image has the annotated size.

        Raises:
            UnreadableImageError: if the file is missing or broken.
            ValueError: if its size is not that of the annotation file.
        """
        path, (height, width) = self.image_path(index), self.image_sizes[index].tolist()
        try:
            for apply_exif in (True, False):
                image = read_image(path, apply_exif, self.max_pixels, self.grey_bits)
                if image.size == (width, height):
                    return image
        except UnreadableImageError as error:
            annotation_ids = self._usable.ids[self._starts[index] : self._ends[index]]
            raise UnreadableImageError(
                f"{error} (dataset {self.name}, image id {self.image_ids[index]}, annotation ids"
                f" {summarize(annotation_ids)}); restore the file, or set DATALOADER.SKIP_CORRUPT True to"
                " skip such images"
            ) from error
        raise ValueError(
            f"{path} is {image.width}x{image.height} pixels (width x height), but the annotations of image"
            f" {self.image_ids[index]} are for {width}x{height}; restore the image or correct its entry"
        )

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """Load and transform an image, with the seed of its augmentation in the key or 0.

        The sample depends on nothing else, so neither workers nor resuming change it.

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
        """Return the images by id; in training only those with a usable object.

        The published code drops images that have only boxes with a side of at most 1 pixel. It keeps those
        whose boxes are all crowds or outside the image, and then crashes on them: dropped here.
        """
        images = self.coco_dict["images"]
        if not self.training:
            return images
        rows = self._usable
        ids = [image["id"] for image in images]
        sizes = np.array([(image["width"], image["height"]) for image in images])
        image_idx = np.searchsorted(ids, rows.image_ids)
        start, side = rows.boxes[:, :2], rows.boxes[:, 2:]
        sides_inside = np.minimum(start + side, sizes[image_idx]) - np.maximum(start, 0)
        is_usable = ~rows.is_crowd & (sides_inside > 1).all(axis=1)
        is_kept = np.zeros(len(images), dtype=bool)
        is_kept[image_idx[is_usable]] = True
        if not filter_empty and is_kept.any():
            is_kept |= ~np.isin(ids, self.annotations.image_ids)
        return [images[i] for i in np.flatnonzero(is_kept)]


def _read_files(entry: DatasetEntry) -> tuple[str, dict[str, Any], Path, tuple[str, ...]]:
    """Detect the format of a dataset; return it with the COCO tree, the folder of images and warnings."""
    path, folder = entry.annotations, entry.images
    if folder is not None:
        tree = read_coco_json(entry.name, path)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"dataset {entry.name} needs the folder {folder} with the images of {path}, which does not"
                " exist; set DATASETS.DATA_DIR to the folder that holds the datasets, or link yours into it"
            )
        return "COCO", tree, folder, ()
    if not path.exists():
        raise FileNotFoundError(
            f"dataset {entry.name} needs {path}, which does not exist; correct the path, or set"
            " DATASETS.DATA_DIR to the folder that holds the datasets"
        )
    if path.is_dir() and is_voc(path, entry.split):
        tree, folder, warnings = read_voc(path, entry.split, entry.class_names)
        return "VOC", tree, folder, tuple(warnings)
    if is_yolo(path):
        tree, folder, warnings = read_yolo(path, entry.split)
        return "YOLO", tree, folder, tuple(warnings)
    raise ValueError(
        f"{path} is not a dataset; expected a COCO file (train.json@images), a VOC folder (Annotations,"
        " JPEGImages; folder@trainval) or a YOLO folder (images, labels, data.yaml; folder@train)"
    )


class ConcatDetectionDataset(ConcatDataset[Sample]):
    """Several datasets of the same classes, one after the other.

    Raises:
        ValueError: if their classes differ.
    """

    datasets: list[DetectionDataset]  # type: ignore[assignment]

    def __init__(self, datasets: Sequence[DetectionDataset]) -> None:
        super().__init__(datasets)
        first = datasets[0]
        for other in datasets[1:]:
            if other.class_names != first.class_names:
                raise ValueError(
                    "datasets that are trained on together must have the same classes in the same order of"
                    f" ids, but {first.name} has {describe_classes(first.class_names)} and {other.name} has"
                    f" {describe_classes(other.class_names)}; correct DATASETS.TRAIN"
                )
        self.name = "+".join(dataset.name for dataset in datasets)
        self.class_names = first.class_names
        self.num_classes = first.num_classes
        self.aspect_ratios = np.concatenate([dataset.aspect_ratios for dataset in datasets])

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index, seed = key if isinstance(key, SampleKey) else (key, 0)
        number = bisect_right(self.cumulative_sizes, index)
        start = self.cumulative_sizes[number - 1] if number else 0
        return self.datasets[number][SampleKey(index - start, seed)]


def describe_classes(class_names: Sequence[str]) -> str:
    """Describe classes: their number and the first three names."""
    shown = ", ".join(class_names[:3])
    noun = "class" if len(class_names) == 1 else "classes"
    return f"{len(class_names)} {noun} ({shown}{', ...' if len(class_names) > 3 else ''})"
