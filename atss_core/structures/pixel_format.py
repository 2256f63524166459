"""Pixel format of network inputs, to compare a configuration with the training of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Published configurations use the mean of one Caffe2 backbone for all, although those of the others differ
# slightly. A larger difference is a mistake, such as the mean of pixels in 0..1.
_GREY_LEVELS = 20.0


@dataclass(frozen=True)
class PixelFormat:
    """Pixel format of network inputs: INPUT.PIXEL_MEAN, PIXEL_STD and TO_BGR255."""

    mean: tuple[float, float, float]  # per channel, in the order and range of the image
    std: tuple[float, float, float]
    is_bgr255: bool  # BGR in 0..255, else RGB in 0..1

    def __str__(self) -> str:
        order = "BGR pixels in 0..255" if self.is_bgr255 else "RGB pixels in 0..1"
        return f"{order}, mean {list(self.mean)}, std {list(self.std)}"

    def overrides(self) -> str:
        """Return the command-line overrides that select this format."""
        return (
            f"INPUT.TO_BGR255 {self.is_bgr255} "
            f'INPUT.PIXEL_MEAN "{list(self.mean)}" INPUT.PIXEL_STD "{list(self.std)}"'
        )

    def suits(self, trained: PixelFormat) -> bool:
        """Tell whether weights trained with another format work with this one.

        Order, range and standard deviation must be equal. Means in 0..255 may differ by 20 grey levels.
        """
        return (
            self.is_bgr255 == trained.is_bgr255
            and _are_close(self.mean, trained.mean, _GREY_LEVELS if self.is_bgr255 else 1e-3)
            and _are_close(self.std, trained.std, 1e-3)
        )


def _are_close(first: Sequence[float], second: Sequence[float], tolerance: float) -> bool:
    pairs = zip(first, second, strict=True)
    return all(math.isclose(a, b, rel_tol=0, abs_tol=tolerance) for a, b in pairs)


CAFFE2_PIXELS = PixelFormat((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), is_bgr255=True)
TORCHVISION_PIXELS = PixelFormat((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), is_bgr255=False)
