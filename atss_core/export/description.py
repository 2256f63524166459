"""What a user of an exported file must know, which travels inside the file as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# The name under which each format keeps it.
KEY = "atss"

# A level of a single cell would be traced as a special case, so the last level (stride 128) has two each way.
SMALLEST_SIDE = 129

BOXES = "x1, y1, x2, y2 in pixels of images, x2 and y2 inclusive: a width is x2 - x1 + 1"


@dataclass(frozen=True)
class Description:
    """How to feed an exported file and how to read what it returns.

    Attributes:
        class_names: the name of label i at i - 1.
        min_size: short side in pixels that images are resized to.
        max_size: cap of their long side.
        nms: "inside" or "outside".
        nms_threshold: IoU above which a box of the same class goes.
        score_threshold: a class probability must exceed this, before centerness counts.
        max_detections: detections an image, 0 for all.
        size_divisibility: the file pads sides to multiples of this by itself.
        pixel_mean: subtracted by the file itself, for its order and range.
        pixel_std: divided by, likewise.
        pixel_order: what the network takes after that; ``images`` are RGB in 0..255 in any case.
        version: of the package that wrote the file.
        boxes: the convention of boxes.
        smallest_side: of ``images`` in pixels, for the format that has a limit (torch).
        grey_bits: of grey values of more than 8 bits, of which ``images`` hold the upper 8; 0: those of the
            file.
    """

    class_names: Sequence[str]
    min_size: int
    max_size: int
    nms: str
    nms_threshold: float
    score_threshold: float
    max_detections: int
    size_divisibility: int
    pixel_mean: Sequence[float]
    pixel_std: Sequence[float]
    pixel_order: str
    version: str
    boxes: str = BOXES
    smallest_side: int = SMALLEST_SIDE
    grey_bits: int = 0

    def to_json(self) -> str:
        """Return it as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Read what ``to_json`` wrote."""
        return cls(**json.loads(text))
