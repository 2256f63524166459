"""What the data loader hands to the training and test loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from atss_core.structures import BoxList, ImageList


class Sample(NamedTuple):
    """One transformed image with its objects.

    Attributes:
        image: normalised, shape (3, h, w); None if the image could not be read and is left out.
        target: the objects, in pixels of ``image``.
        image_id: its id in the annotation file.
        skipped: a message for each unreadable image that was skipped on the way.
    """

    image: Tensor | None
    target: BoxList
    image_id: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Images that go through the detector together.

    Attributes:
        images: N padded images; N is 0 if all images of a test batch were skipped.
        targets: the objects of each image.
        image_ids: the id of each image in its annotation file.
        skipped: a message for each unreadable image, for the main process to count and log.
    """

    images: ImageList
    targets: list[BoxList]
    image_ids: list[int]
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy all tensors to ``device``."""
        targets = [target.to(device, non_blocking=non_blocking) for target in self.targets]
        return Batch(self.images.to(device, non_blocking), targets, self.image_ids, self.skipped)

    def pin_memory(self) -> Batch:
        """Copy all tensors to page-locked memory; the data loader calls this."""
        targets = [target.pin_memory() for target in self.targets]
        return Batch(self.images.pin_memory(), targets, self.image_ids, self.skipped)


def collate(samples: Sequence[Sample], size_divisibility: int) -> Batch:
    """Pad samples to one size.

    Args:
        samples: one or more; those without an image only count as skipped.
        size_divisibility: padded sides are multiples of this; 0 leaves them as they are.
    """
    images = [sample.image for sample in samples if sample.image is not None]
    readable = [sample for sample in samples if sample.image is not None]
    return Batch(
        ImageList.from_tensors(images, size_divisibility)
        if images
        else ImageList(torch.empty(0, 3, 0, 0), []),
        [sample.target for sample in readable],
        [sample.image_id for sample in readable],
        [message for sample in samples for message in sample.skipped],
    )
