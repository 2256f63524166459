"""Test-time augmentation: detect at several scales, flipped as well, and merge the detections."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from atss_core.data.transforms import Transform, from_pixels
from atss_core.layers import batched_nms, box_vote
from atss_core.modeling import Detector
from atss_core.structures import BoxList, ImageList
from atss_core.structures import boxes as box_ops


@dataclass(frozen=True)
class Scale:
    """A scale of test-time augmentation.

    Attributes:
        transform: resizes and normalises the image.
        is_flipped: whether the flipped image is used as well.
        size_range: smallest and largest square root of the area of detections, in pixels of this scale; None
            keeps all.
    """

    transform: Transform
    is_flipped: bool = False
    size_range: tuple[float, float] | None = None


@dataclass(eq=False, kw_only=True)
class MultiScale:
    """Detect objects at several scales of each image; ``SingleScale`` is the plain counterpart.

    Images and scales go through the network one at a time, so that memory is that of the largest scale, and
    no result depends on which images share a batch. A thread prepares the next scale meanwhile.

    Attributes:
        detector: on ``device``.
        scales: at least one; boxes are merged in the pixels of the first.
        merge: merges the detections of all scales of an image.
        is_nms_joint: whether the scales deliver all candidates, for the NMS of ``merge``, or each scale has
            its own NMS.
        size_divisibility: padded sizes are multiples of this; 0 does not pad.
        device: where the detector is.
    """

    detector: Detector
    scales: Sequence[Scale]
    merge: Callable[[BoxList], BoxList]
    is_nms_joint: bool
    size_divisibility: int
    device: torch.device

    def predict(self, images: ImageList) -> list[BoxList]:
        """Detect objects at all scales.

        Args:
            images: RGB images in their own size on the CPU, uint8.

        Returns:
            The detections of all scales for each image, in pixels of the first scale.
        """
        pairs = zip(images.tensors, images.image_sizes, strict=True)
        return [
            concat(list(self._detect_at_scales(pixels[:, :height, :width])))
            for pixels, (height, width) in pairs
        ]

    def detect(self, detections: Sequence[BoxList], image_sizes: Sequence[tuple[int, int]]) -> list[BoxList]:
        """Merge what ``predict`` returned; boxes stay in pixels of the first scale."""
        return [self.merge(boxes) for boxes in detections]

    def _detect_at_scales(self, pixels: Tensor) -> Iterator[BoxList]:
        """Yield the detections of each scale, those of the flipped image after them, in its pixels."""
        for scale, image in self._inputs(pixels):
            image = image.to(self.device, non_blocking=True)
            yield in_range(self._detect(image), scale.size_range)
            if scale.is_flipped:
                yield in_range(self._detect(image.flip(-1)).flip_horizontal(), scale.size_range)

    def _inputs(self, pixels: Tensor) -> Iterator[tuple[Scale, Tensor]]:
        """Yield the scales with their inputs (3, h, w), of which at most two exist at a time."""
        original, rng = from_pixels(pixels), random.Random(0)
        with ThreadPoolExecutor(max_workers=1) as thread:
            upcoming = thread.submit(self.scales[0].transform, original, None, rng)
            for scale, following in zip_longest(self.scales, self.scales[1:]):
                image, _ = upcoming.result()
                if following is not None:
                    upcoming = thread.submit(following.transform, original, None, rng)
                yield scale, image

    def _detect(self, image: Tensor) -> BoxList:
        images = ImageList.from_tensors([image], self.size_divisibility)
        outputs = self.detector.predict(images)
        if not self.is_nms_joint:
            return self.detector.postprocess(outputs, images.image_sizes)[0]
        candidates = self.detector.postprocess.candidates(outputs, images.image_sizes)
        boxes, scores, labels = (values[0] for values in candidates)
        is_valid = scores >= 0  # the others are padding
        return BoxList(boxes[is_valid], images.image_sizes[0], labels[is_valid], scores[is_valid])


def vote(detections: BoxList, *, threshold: float, soft: bool, max_detections: int) -> BoxList:
    """Average the overlapping boxes of an image (box voting, arXiv 1505.01749, section 5).

    Args:
        detections: of all scales of an image.
        threshold: smallest IoU of boxes that are averaged, per class.
        soft: also keep the averaged boxes, rescored.
        max_detections: as for ``top_k``.

    Returns:
        Merged detections by falling score.
    """
    labels, scores = _fields(detections)
    boxes, scores, labels = box_vote(detections.boxes, scores, labels, threshold, soft)
    return top_k(BoxList(boxes, detections.image_size, labels, scores), max_detections)


def nms(detections: BoxList, *, threshold: float, max_detections: int) -> BoxList:
    """Apply class-wise NMS with an IoU ``threshold``, then ``top_k``."""
    labels, scores = _fields(detections)
    return top_k(detections[batched_nms(detections.boxes, scores, labels, threshold)], max_detections)


def concat(detections: Sequence[BoxList]) -> BoxList:
    """Concatenate the detections of all scales, in pixels of the first."""
    image_size = detections[0].image_size
    resized = [boxes.resize(image_size) for boxes in detections]
    labels, scores = (torch.cat(values) for values in zip(*map(_fields, resized), strict=True))
    return BoxList(torch.cat([each.boxes for each in resized]), image_size, labels, scores)


def in_range(detections: BoxList, size_range: tuple[float, float] | None) -> BoxList:
    """Keep the boxes whose square root of area, in pixels, is strictly inside the range."""
    if size_range is None:
        return detections
    area = box_ops.area(detections.boxes)
    return detections[(area > size_range[0] ** 2) & (area < size_range[1] ** 2)]


def top_k(detections: BoxList, k: int) -> BoxList:
    """Keep the first ``k`` detections, of falling score, and those that tie with the last; 0 keeps all."""
    if not 0 < k < len(detections):
        return detections
    _, scores = _fields(detections)
    return detections[scores >= scores[k - 1]]


def _fields(detections: BoxList) -> tuple[Tensor, Tensor]:
    """Return labels and scores."""
    assert detections.labels is not None
    assert detections.scores is not None
    return detections.labels, detections.scores
