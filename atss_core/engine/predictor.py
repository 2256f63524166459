"""The Python API: from a configuration, weights and images to detections."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atss_core.config import load_cfg
from atss_core.data import Batch, Sample, UnreadableImageError
from atss_core.data.images import MAX_PIXELS, describe_unused_range
from atss_core.data.transforms import Transform
from atss_core.engine.build import predictor_arguments
from atss_core.engine.detections import Detections
from atss_core.engine.inference import Inference
from atss_core.engine.sources import ImageLike, each_source, is_folder, is_single_image, path_of, to_image
from atss_core.structures import BoxList, ImageList

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Predictor:
    """Detect objects in images.

    Attributes:
        inference: of the detector with its weights, from ``build_inference``.
        transform: from an image to a tensor, from ``build_transform``.
        collate: pads tensors to a batch, from ``build_collate``.
        class_names: the name of label i at i - 1.
        max_pixels: files of larger images are refused.
        grey_bits: of grey values of more than 8 bits, see ``to_rgb``.
        skip_unreadable: skip images that cannot be read in lists and streams as well, not only in folders.
        skipped: an error for each image that the last folder, list or stream skipped.
    """

    inference: Inference
    transform: Transform
    collate: Callable[[Sequence[Sample]], Batch]
    class_names: list[str]
    max_pixels: int = MAX_PIXELS
    grey_bits: int = 0
    skip_unreadable: bool = False
    skipped: list[UnreadableImageError] = field(default_factory=list, init=False)
    _warnings: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.inference.detector.eval()

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
        overrides = [*(opts or ()), *(("MODEL.DEVICE", device) if device else ())]
        return cls(**predictor_arguments(load_cfg(config, overrides), weights))

    @property
    def device(self) -> torch.device:
        """Return the device of the detector."""
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
                OpenCV's array, tensor); or a list of them, or a folder, whose images are sorted by name.
            batch_size: how many images are taken at a time; see ``stream``.

        Returns:
            Detections by falling score in pixels of the image, on the CPU; a list of them for a list and
            for a folder.
        """
        detections = [each for _, each in self.stream(source, batch_size)]
        return detections[0] if is_single_image(source) else detections

    def stream(
        self, sources: ImageLike | Iterable[ImageLike], batch_size: int = 1
    ) -> Iterator[tuple[Image.Image, Detections]]:
        """Detect objects in any number of images, of which one batch is in memory at a time.

        Images share a pass through the network if they have the same size after resizing and padding.
        Convolutions and GroupNorm would see padding to a larger neighbour; so results do not depend on the
        batch except for rounding, and batches pay where sizes repeat, as in videos.

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
            detections = self._detect([image for _, image in batch])
            for (path, image), boxes in zip(batch, detections, strict=True):
                yield image, Detections(boxes, self.class_names, path, self.grey_bits)

    def _read(self, sources: ImageLike | Iterable[ImageLike]) -> Iterator[tuple[Path | None, Image.Image]]:
        """Yield images with their files; skip unreadable ones where that is allowed."""
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
        """Detect objects in RGB images, in their pixels, on the CPU."""
        inputs = [self.collate([self._sample(image)]).images for image in images]
        groups: dict[Hashable, list[int]] = {}  # of images that share a pass
        for i, each in enumerate(inputs):
            groups.setdefault(each.tensors.shape, []).append(i)
        results: dict[int, BoxList] = {}
        for indices in groups.values():
            sizes = [size for i in indices for size in inputs[i].image_sizes]
            batch = ImageList(torch.cat([inputs[i].tensors for i in indices]), sizes)
            detections = self.inference.detect(self.inference.predict(batch), sizes)
            results |= zip(indices, detections, strict=True)
        resized = [results[i].to("cpu").resize((p.height, p.width)) for i, p in enumerate(images)]
        finite = [detections.drop_not_finite() for detections in resized]
        if num_dropped := sum(map(len, resized)) - sum(map(len, finite)):
            self._warn_once("dropped %d detections: expected finite boxes and scores, got NaN", num_dropped)
        return finite

    def _sample(self, image: Image.Image) -> Sample:
        no_boxes = BoxList(torch.zeros(0, 4), (image.height, image.width))
        tensor, _ = self.transform(image, no_boxes, random.Random(0))
        return Sample(tensor, no_boxes, image_id=0)
