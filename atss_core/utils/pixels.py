"""Which pixels a network takes, to compare a configuration with what weights were trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Published configurations give all Caffe2 backbones the mean of the first of them; those of the others are a
# few grey levels away. What is further away is a mistake, such as the mean of pixels in 0..1.
GREY_LEVELS = 20.0


@dataclass(frozen=True)
class PixelFormat:
    """Pixels that a network takes, as INPUT.PIXEL_MEAN, PIXEL_STD and TO_BGR255 say it.

    Attributes:
        mean: subtracted, for each channel in the order and range of the image.
        std: divided by, likewise.
        is_bgr255: BGR in 0..255 if true, RGB in 0..1 if false.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    is_bgr255: bool

    def __str__(self) -> str:
        order = "BGR pixels in 0..255" if self.is_bgr255 else "RGB pixels in 0..1"
        return f"{order}, mean {list(self.mean)}, std {list(self.std)}"

    def overrides(self) -> str:
        """Return the words that ask for these pixels on a command line."""
        return (
            f"INPUT.TO_BGR255 {self.is_bgr255} "
            f'INPUT.PIXEL_MEAN "{list(self.mean)}" INPUT.PIXEL_STD "{list(self.std)}"'
        )

    def suits(self, wanted: PixelFormat) -> bool:
        """Tell whether weights trained with ``wanted`` pixels work with these.

        Order, range and standard deviation must be the same, and so must the mean, but for ``GREY_LEVELS``
        where it is in 0..255.
        """
        return (
            self.is_bgr255 == wanted.is_bgr255
            and _are_close(self.mean, wanted.mean, GREY_LEVELS if self.is_bgr255 else 1e-3)
            and _are_close(self.std, wanted.std, 1e-3)
        )


def _are_close(first: Sequence[float], second: Sequence[float], tolerance: float) -> bool:
    pairs = zip(first, second, strict=True)
    return all(math.isclose(a, b, rel_tol=0, abs_tol=tolerance) for a, b in pairs)


CAFFE2_PIXELS = PixelFormat((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), is_bgr255=True)
TORCHVISION_PIXELS = PixelFormat((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), is_bgr255=False)
