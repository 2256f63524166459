"""The Python API: a configuration, weights and an image in; detections out."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atss_core.checkpoint.weights import load_trained, read_detector
from atss_core.config import load_cfg
from atss_core.config.catalog import COCO_CLASSES
from atss_core.data import (
    Batch,
    Sample,
    UnreadableImageError,
    build_collate,
    build_transform,
    fill_num_classes,
    grey_bits,
    pixel_limit,
)
from atss_core.data.images import MAX_PIXELS, describe_unused_range
from atss_core.data.transforms import Transform
from atss_core.engine.build import build_device, build_inference, move_detector, skips_unreadable
from atss_core.engine.detections import Detections
from atss_core.engine.inference import Inference
from atss_core.engine.sources import ImageLike, each_source, is_folder, is_single_image, path_of, to_image
from atss_core.modeling import build_detector
from atss_core.structures import BoxList, ImageList

logger = logging.getLogger(__name__)


class Predictor:
    """Detect objects in images.

    Args:
        inference: the detector with its weights, as ``build_inference`` returns.
        transform: makes a tensor of an image, as ``build_transform`` returns.
        collate: pads it, as ``build_collate`` returns.
        class_names: the name of label i at i - 1.
        max_pixels: files of larger images are refused.
        grey_bits: of grey values of more than 8 bits, see ``to_rgb``.
        skip_unreadable: skip images that cannot be read in lists and streams as well, not only in folders.

    Attributes:
        skipped: an error for each image that the last folder, list or stream skipped.
    """

    def __init__(
        self,
        inference: Inference,
        transform: Transform,
        collate: Callable[[Sequence[Sample]], Batch],
        class_names: list[str],
        max_pixels: int = MAX_PIXELS,
        grey_bits: int = 0,
        skip_unreadable: bool = False,
    ) -> None:
        inference.detector.eval()
        self.inference = inference
        self.transform = transform
        self.collate = collate
        self.class_names = class_names
        self.max_pixels = max_pixels
        self.grey_bits = grey_bits
        self._warnings: set[str] = set()
        self.skip_unreadable = skip_unreadable
        self.skipped: list[UnreadableImageError] = []

    @classmethod
    def from_config(
        cls,
        config: str | Path,
        weights: str | Path,
        opts: Sequence[str] | None = None,
        device: str | None = None,
    ) -> Predictor:
        """Build a predictor from a configuration and a checkpoint.

        Args:
            config: path of a YAML file, or the name of a shipped one, such as "atss_R_50_FPN_1x".
            weights: path or URL of the checkpoint.
            opts: overrides, as on the command line.
            device: such as "cpu" or "cuda:1"; by default MODEL.DEVICE of the configuration.

        Raises:
            ValueError: if the configuration or the checkpoint is faulty, or they do not fit together.
            FileNotFoundError: if one is not there.
        """
        words = [*(opts or ()), *(("MODEL.DEVICE", device) if device else ())]
        settings = load_cfg(config, words)
        place = build_device(settings)
        source, checkpoint = read_detector(weights)
        if checkpoint.get("class_names"):
            settings = fill_num_classes(settings, checkpoint["class_names"])
        detector = build_detector(settings)
        load_trained(detector, checkpoint, source)
        class_names = checkpoint.get("class_names") or default_class_names(detector.rpn.head.num_classes)
        return cls(
            build_inference(settings, move_detector(settings, detector, place), place),
            build_transform(settings, training=False),
            build_collate(settings),
            class_names,
            max_pixels=pixel_limit(settings),
            grey_bits=grey_bits(settings),
            skip_unreadable=skips_unreadable(settings),
        )

    @property
    def device(self) -> torch.device:
        """Return where the detector is."""
        return self.inference.device

    @overload  # An open file is an iterator of bytes as well, but stands for one image.
    def __call__(  # type: ignore[overload-overlap]
        self,
        source: bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray[Any, Any] | Tensor,
        batch_size: int = 1,
    ) -> Detections: ...
    @overload
    def __call__(self, source: str | Path, batch_size: int = 1) -> Any: ...  # a file, or a folder
    @overload
    def __call__(
        self, source: Sequence[ImageLike] | Iterator[ImageLike], batch_size: int = 1
    ) -> list[Detections]: ...
    def __call__(
        self, source: ImageLike | Iterable[ImageLike], batch_size: int = 1
    ) -> Detections | list[Detections]:
        """Detect objects in an image, or in several.

        Args:
            source: an image as ``to_image`` takes it (path, encoded bytes, open file, Pillow image,
                OpenCV's array, tensor); or a list of them, or a folder, whose images are taken by name.
            batch_size: how many images are taken at a time; see ``stream``.

        Returns:
            Detections by falling score in pixels of the image, on the CPU; a list of them for a list and
            for a folder.
        """
        found = [detections for _, detections in self.stream(source, batch_size)]
        return found[0] if is_single_image(source) else found

    def stream(
        self, sources: ImageLike | Iterable[ImageLike], batch_size: int = 1
    ) -> Iterator[tuple[Image.Image, Detections]]:
        """Detect objects in any number of images, of which one batch is in memory at a time.

        Images go through the network together if they have the same size once they are resized and padded.
        Padding to a larger neighbour would be seen by convolutions and GroupNorm; so no result depends on the
        batch but for rounding, and batches pay where sizes repeat, as in videos.

        Args:
            sources: a folder, or any iterable of what ``__call__`` takes, such as a generator.
            batch_size: how many images are taken at a time.

        Yields:
            Each image in RGB with its detections, in order.

        Files of a folder that cannot be read are skipped, with a warning each, and are in ``skipped``. In a
        list or iterable, where results are matched by position, they raise, unless DATALOADER.SKIP_CORRUPT.

        Raises:
            UnreadableImageError: if an image cannot be read and is not skipped.
            ValueError: if a source is none, or a folder has no images.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.skipped = []
        remaining = self._read(sources)
        while batch := list(islice(remaining, batch_size)):
            found = self._detect([image for _, image in batch])
            for (path, image), boxes in zip(batch, found, strict=True):
                yield image, Detections(boxes, self.class_names, path, self.grey_bits)

    def _read(self, sources: ImageLike | Iterable[ImageLike]) -> Iterator[tuple[Path | None, Image.Image]]:
        """Yield images with their files, and skip what cannot be read and may be skipped."""
        may_skip = is_folder(sources) or (self.skip_unreadable and not is_single_image(sources))
        for source in each_source(sources):
            try:
                image = to_image(source, self.max_pixels, self.grey_bits)
            except UnreadableImageError as error:
                if not may_skip:
                    raise
                logger.warning("Skipped: %s", error)
                self.skipped.append(error)
            else:
                path = path_of(source)
                if reason := describe_unused_range([image]):
                    self._warn_once("%s: %s", path or "image", reason)
                yield path, image

    def _warn_once(self, message: str, *values: object) -> None:
        """Log a warning unless this message was logged before, of another image."""
        if message not in self._warnings:
            logger.warning(message, *values)
        self._warnings.add(message)

    @torch.inference_mode()
    def _detect(self, images: Sequence[Image.Image]) -> list[BoxList]:
        """Return what is in RGB images, in their pixels, on the CPU."""
        inputs = [self.collate([self._sample(image)]).images for image in images]
        found: dict[int, BoxList] = {}
        for indices in group_by([images.tensors.shape for images in inputs]):
            sizes = [size for i in indices for size in inputs[i].image_sizes]
            batch = ImageList(torch.cat([inputs[i].tensors for i in indices]), sizes)
            detections = self.inference.detect(self.inference.predict(batch), sizes)
            found |= dict(zip(indices, detections, strict=True))
        results = [found[i].to("cpu").resize((p.height, p.width)) for i, p in enumerate(images)]
        finite = [result.drop_not_finite() for result in results]
        if num_dropped := sum(map(len, results)) - sum(map(len, finite)):
            self._warn_once("dropped %d detections: expected finite boxes and scores, got NaN", num_dropped)
        return finite

    def _sample(self, image: Image.Image) -> Sample:
        nothing = BoxList(torch.zeros(0, 4), (image.height, image.width))
        tensor, _ = self.transform(image, nothing, random.Random(0))
        return Sample(tensor, nothing, image_id=0)


def group_by(keys: Sequence[Hashable]) -> Iterable[list[int]]:
    """Return the indices of equal keys together."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return groups.values()


def default_class_names(num_classes: int) -> list[str]:
    """Return the names of COCO's 80 classes, or numbers for another count: old checkpoints hold no names."""
    return list(COCO_CLASSES) if num_classes == 80 else [f"class {i}" for i in range(1, num_classes + 1)]
