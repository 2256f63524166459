"""Multi-scale testing: look at an image in several sizes, and flipped, and merge what was found."""

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
class View:
    """A size to look at an image in.

    Attributes:
        transform: resizes and normalises the image.
        is_flipped: whether to look at the flipped image as well.
        side_range: detections must have a square root of area between these, in pixels of this view; None for
            all.
    """

    transform: Transform
    is_flipped: bool = False
    side_range: tuple[float, float] | None = None


class MultiScale:
    """Detect objects in several views of each image; ``SingleScale`` is its plain twin.

    Images and views go through the network one at a time, so that memory is that of the largest view, and
    no result depends on which images share a batch. While one view is on the device, a thread prepares the
    next one.

    Args:
        detector: on ``device``.
        views: at least one; boxes are merged in the pixels of the first.
        merge: makes the detections of an image out of those of all its views.
        is_nms_joint: if true, the views deliver all candidates, for ``merge`` to suppress; if false, each
            view has its own NMS.
        size_divisibility: padded sides are multiples of this; 0 leaves them as they are.
        device: where the detector is.
    """

    def __init__(
        self,
        detector: Detector,
        views: Sequence[View],
        merge: Callable[[BoxList], BoxList],
        *,
        is_nms_joint: bool,
        size_divisibility: int,
        device: torch.device,
    ) -> None:
        self.detector = detector
        self.views = list(views)
        self.merge = merge
        self.is_nms_joint = is_nms_joint
        self.size_divisibility = size_divisibility
        self.device = device

    def predict(self, images: ImageList) -> list[BoxList]:
        """Look at each image in all views.

        Args:
            images: RGB images in their own size on the CPU, uint8.

        Returns:
            For each image what all its views found, in pixels of the first view.
        """
        pairs = zip(images.tensors, images.image_sizes, strict=True)
        return [join(list(self._look(pixels[:, :height, :width]))) for pixels, (height, width) in pairs]

    def detect(self, found: Sequence[BoxList], image_sizes: Sequence[tuple[int, int]]) -> list[BoxList]:
        """Merge what ``predict`` returned; boxes stay in pixels of the first view."""
        return [self.merge(boxes) for boxes in found]

    def _look(self, pixels: Tensor) -> Iterator[BoxList]:
        """Yield what each view finds, flipped ones after their twins, in pixels of the view."""
        for view, image in self._inputs(pixels):
            image = image.to(self.device, non_blocking=True)
            yield in_range(self._detect(image), view.side_range)
            if view.is_flipped:
                yield in_range(self._detect(image.flip(-1)).flip_horizontal(), view.side_range)

    def _inputs(self, pixels: Tensor) -> Iterator[tuple[View, Tensor]]:
        """Yield the views with their inputs (3, h, w), of which at most two exist at a time."""
        original, rng = from_pixels(pixels), random.Random(0)
        with ThreadPoolExecutor(max_workers=1) as thread:
            upcoming = thread.submit(self.views[0].transform, original, None, rng)
            for view, following in zip_longest(self.views, self.views[1:]):
                image, _ = upcoming.result()
                if following is not None:
                    upcoming = thread.submit(following.transform, original, None, rng)
                yield view, image

    def _detect(self, image: Tensor) -> BoxList:
        images = ImageList.from_tensors([image], self.size_divisibility)
        outputs = self.detector.predict(images)
        if not self.is_nms_joint:
            return self.detector.postprocess(outputs, images.image_sizes)[0]
        boxes, scores, labels = (
            values[0] for values in self.detector.postprocess.candidates(outputs, images.image_sizes)
        )
        is_there = scores >= 0
        return BoxList(
            boxes[is_there], images.image_sizes[0], labels=labels[is_there], scores=scores[is_there]
        )


def vote(found: BoxList, *, threshold: float, soft: bool, max_detections: int) -> BoxList:
    """Average the boxes of all views that agree (box voting, arXiv 1505.01749, section 5).

    Args:
        found: detections of one image.
        threshold: IoU from which on boxes of a class agree.
        soft: also keep the averaged boxes, rescored.
        max_detections: detections to keep; ties with the last one stay as well.

    Returns:
        Merged detections by falling score.
    """
    assert found.scores is not None
    assert found.labels is not None
    boxes, scores, labels = box_vote(found.boxes, found.scores, found.labels, threshold, soft)
    return best(BoxList(boxes, found.image_size, labels=labels, scores=scores), max_detections)


def suppress(found: BoxList, *, threshold: float, max_detections: int) -> BoxList:
    """Keep the best of the boxes that overlap.

    Args:
        found: detections of one image.
        threshold: IoU of the class-wise NMS.
        max_detections: detections to keep; ties with the last one stay as well.

    Returns:
        The kept detections by falling score.
    """
    assert found.scores is not None
    assert found.labels is not None
    keep = batched_nms(found.boxes, found.scores, found.labels, threshold)
    return best(found[keep], max_detections)


def join(found: Sequence[BoxList]) -> BoxList:
    """Put the detections of all views together, in pixels of the first."""
    image_size = found[0].image_size
    resized = [boxes.resize(image_size) for boxes in found]
    fields = [(part.boxes, part.labels, part.scores) for part in resized]
    boxes, labels, scores = (torch.cat(values) for values in zip(*fields, strict=True))
    return BoxList(boxes, image_size, labels=labels, scores=scores)


def in_range(found: BoxList, side_range: tuple[float, float] | None) -> BoxList:
    """Keep the boxes whose area is strictly between the squares of two lengths in pixels."""
    if side_range is None:
        return found
    area = box_ops.area(found.boxes)
    return found[(area > side_range[0] ** 2) & (area < side_range[1] ** 2)]


def best(found: BoxList, max_detections: int) -> BoxList:
    """Keep the first detections, of falling score, and those that tie with the last of them; 0 keeps all."""
    if not 0 < max_detections < len(found):
        return found
    assert found.scores is not None
    return found[found.scores >= found.scores[max_detections - 1]]
