"""Image transforms: resize, flip, normalise.

A transform is called with the image, its target (None for an image without one) and the random generator of
the sample, its only source of randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atss_core.structures import BoxList

Target = BoxList | None
Transform = Callable[[Image.Image, Target, Random], tuple[Tensor, Target]]
Step = Callable[[Image.Image, Target, Random], tuple[Image.Image, Target]]

# Pixels by which the long side may exceed its cap. The published excess is at most half the ratio of long to
# short side, so sizes are as published up to a ratio of 32; an image of one row would keep any length.
_EXCESS = 16


class Compose:
    """Apply ``steps`` to an image one after the other, then ``to_tensor``, which returns (3, h, w)."""

    def __init__(self, steps: Sequence[Step], to_tensor: Callable[[Image.Image], Tensor]) -> None:
        self.steps = list(steps)
        self.to_tensor = to_tensor

    def __call__(self, image: Image.Image, target: Target, rng: Random) -> tuple[Tensor, Target]:
        """Return the image (3, h, w) and the target in its pixels."""
        for step in self.steps:
            image, target = step(image, target, rng)
        return self.to_tensor(image), target


class Resize:
    """Bring the short side to a size, unless the long side then exceeds its cap.

    Args:
        min_sizes: short sides in pixels; one is drawn for each image.
        max_size: cap of the long side in pixels.
    """

    def __init__(self, min_sizes: Sequence[int], max_size: int) -> None:
        if not len(min_sizes) or min(min_sizes) < 1:
            raise ValueError(
                f"INPUT.MIN_SIZE_TRAIN and _TEST must be positive short sides, got {tuple(min_sizes)}"
            )
        self.min_sizes = min_sizes
        self.max_size = max_size

    def __call__(self, image: Image.Image, target: Target, rng: Random) -> tuple[Image.Image, Target]:
        """Return the image at its new size and the target in its pixels."""
        size = resize_size((image.height, image.width), rng.choice(self.min_sizes), self.max_size)
        resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return resized, None if target is None else target.resize(size)


class RandomHorizontalFlip:
    """Flip left to right with a probability in [0, 1]."""

    def __init__(self, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"a probability must be in [0, 1], got {probability}")
        self.probability = probability

    def __call__(self, image: Image.Image, target: Target, rng: Random) -> tuple[Image.Image, Target]:
        """Return image and target, both flipped or both unchanged."""
        if rng.random() >= self.probability:
            return image, target
        flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return flipped, None if target is None else target.flip_horizontal()


def resize_size(image_size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """Return the (height, width) to which the published code resizes an image of (height, width).

    The cap of the long side lowers the short side, which is rounded; the long side follows by truncation and
    so can exceed the cap by a few pixels, here by at most ``_EXCESS``.
    """
    short, long = sorted(image_size)
    size = min_size
    if long / short * size > max_size:
        size = max(round(max_size * short / long), 1)
    scaled_long = min(max(int(size * long / short), 1), max_size + _EXCESS)
    return (size, scaled_long) if image_size[0] <= image_size[1] else (scaled_long, size)


class Normalize:
    """Turn an RGB image into the input tensor of the network.

    Args:
        mean: subtracted from the channels.
        std: the channels are divided by it afterwards.
        to_bgr255: channels are blue, green, red in 0..255 if true, else red, green, blue in 0..1; mean and
            std are in that order and range.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_bgr255: bool) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                f"INPUT.PIXEL_MEAN and PIXEL_STD need 3 numbers each, STD above 0, "
                f"got {tuple(mean)} and {tuple(std)}"
            )
        self.to_bgr255 = to_bgr255
        # (x / 255 - mean) / std is (x - 255 * mean) / (255 * std), which is one pass over the pixels less.
        unit = 1.0 if to_bgr255 else 255.0
        self._offsets = [np.float32(unit * value) for value in mean]
        self._divisors = [np.float32(unit * value) for value in std]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the normalised image, shape (3, h, w)."""
        # The published code divides by 255 and multiplies again, which moves some pixels by 1.5e-5. Here one
        # pass per channel converts and subtracts: normalising used to cost more time than decoding.
        values = np.empty((3, image.height, image.width), dtype=np.float32)
        channels = image.split()[::-1] if self.to_bgr255 else image.split()
        for i, (offset, divisor) in enumerate(zip(self._offsets, self._divisors, strict=True)):
            np.subtract(np.asarray(channels[i]), offset, out=values[i], dtype=np.float32)
            if divisor != 1:
                values[i] /= divisor
        return torch.from_numpy(values)


def to_pixels(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB image, uint8, shape (3, h, w)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def from_pixels(pixels: Tensor) -> Image.Image:
    """Return the RGB image of uint8 pixels (3, h, w) on the CPU."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
