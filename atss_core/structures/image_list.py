"""Images of different sizes in one zero-padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ImageList:
    """A batch of normalised images, padded with zeros at the right and bottom.

    Args:
        tensors: the padded batch, shape (N, 3, H, W).
        image_sizes: (height, width) of each image before padding.
    """

    def __init__(self, tensors: Tensor, image_sizes: Sequence[tuple[int, int]]) -> None:
        if len(tensors) != len(image_sizes):
            raise ValueError(f"{len(tensors)} images but {len(image_sizes)} image sizes")
        self.tensors = tensors
        self.image_sizes = list(image_sizes)

    @classmethod
    def from_tensors(cls, images: Sequence[Tensor], size_divisibility: int = 0) -> ImageList:
        """Pad images to one size.

        Args:
            images: normalised images, each of shape (3, h, w).
            size_divisibility: round the padded sides up to a multiple of this; 0 and 1 do not round.

        Raises:
            ValueError: if ``images`` is empty or an image is not (3, h, w).
        """
        if not images:
            raise ValueError("expected at least one image, got none")
        for image in images:
            if image.ndim != 3 or image.shape[0] != 3:
                raise ValueError(f"an image must have shape (3, h, w), got {tuple(image.shape)}")
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        step = max(size_divisibility, 1)
        height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
        batch = images[0].new_zeros((len(images), 3, height, width))
        for padded, image in zip(batch, images, strict=True):
            padded[:, : image.shape[1], : image.shape[2]].copy_(image)
        return cls(batch, sizes)

    def __len__(self) -> int:
        return len(self.tensors)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageList:
        """Copy the batch to ``device``."""
        return ImageList(self.tensors.to(device, non_blocking=non_blocking), self.image_sizes)

    def pin_memory(self) -> ImageList:
        """Copy the batch to page-locked memory, for the data loader."""
        return ImageList(self.tensors.pin_memory(), self.image_sizes)
