"""The detections of one image, with class names."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from atss_core.engine.sources import ImageLike, to_image
from atss_core.structures import BoxList
from atss_core.structures.boxes import to_exclusive, to_xywh
from atss_core.utils.extras import require
from atss_core.visualization.boxes import draw_boxes


class Detection(NamedTuple):
    """One object: its class name, its score in [0, 1], and its inclusive (x1, y1, x2, y2) in pixels."""

    name: str
    score: float
    box: tuple[float, float, float, float]


class Detections(BoxList):
    """The objects of one image: a ``BoxList`` with class names that can be drawn and converted.

    Args:
        detections: boxes with labels in 1..C and scores, in pixels of the image.
        class_names: the name of label l is ``class_names[l - 1]``.
        path: the file of the image, if it has one.
        grey_bits: as the predictor reads that file.

    Raises:
        ValueError: if labels or scores are missing.
    """

    labels: Tensor
    scores: Tensor

    def __init__(
        self, detections: BoxList, class_names: Sequence[str], path: Path | None = None, grey_bits: int = 0
    ) -> None:
        if detections.labels is None or detections.scores is None:
            raise ValueError(f"expected detections with labels and scores, got {detections!r}")
        super().__init__(detections.boxes, detections.image_size, detections.labels, detections.scores)
        self.class_names = list(class_names)
        self.path = path
        self.grey_bits = grey_bits

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        return f"{len(self)} object{'' if len(self) == 1 else 's'}{': ' if counts else ''}{counts}"

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"Detections({f'{self.path}, ' if self.path else ''}{width}x{height}, {self})"

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.class_names[label - 1] for label in self.labels.tolist()]

    def rows(self) -> Iterator[Detection]:
        """Yield the objects one by one, by falling score, as plain Python values."""
        for name, score, box in zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True):
            yield Detection(name, score, tuple(box))

    def above(self, threshold: float) -> Detections:
        """Return the objects with at least this score."""
        return self[self.scores >= threshold]

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return COCO results, as ``json.dump`` and ``COCO.loadRes`` take them.

        Args:
            image_id: of the image in the annotation file.
            category_ids: the category of label l is ``category_ids[l - 1]``, by default l. COCO's own 80 ids
                have gaps, so for COCO's files give the sorted ids of their categories.

        Raises:
            ValueError: if there is not one id per class.
        """
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.class_names):
            raise ValueError(f"expected {len(self.class_names)} category ids, one per class, got {len(ids)}")
        boxes = to_xywh(self.boxes.double()).tolist()
        return [
            {"image_id": image_id, "category_id": ids[label - 1], "bbox": box, "score": score}
            for box, label, score in zip(boxes, self.labels.tolist(), self.scores.tolist(), strict=True)
        ]

    def draw(self, image: ImageLike | None = None, threshold: float = 0.5, scale: float = 1.0) -> Image.Image:
        """Draw the objects on a copy of the image.

        Args:
            image: any predictor input, in any size; by default the file of the detections.
            threshold: objects with a lower score are left out.
            scale: enlarges the image first, which keeps lines and text of small images crisp.

        Raises:
            ValueError: if the image is not a file and is not given.
        """
        source = self.path if image is None else image
        if source is None:
            raise ValueError("image: expected one, got None for detections without a file. Call draw(image).")
        image = to_image(source, sys.maxsize, self.grey_bits)  # the predictor has checked the size
        return draw_boxes(image, self, self.class_names, threshold, scale)

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``, for its zones and annotators, and for the package trackers.

        Its x2 and y2 are exclusive, greater by one; its class ids count from 0; ``data["class_name"]`` has
        the names.

        Raises:
            ValueError: if the package supervision is not installed.
        """
        return require("supervision").Detections(
            xyxy=to_exclusive(self.boxes.float()).cpu().numpy(),
            confidence=self.scores.float().cpu().numpy(),
            class_id=(self.labels - 1).cpu().numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )
