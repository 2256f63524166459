"""COCO detection metrics: detections in, twelve numbers and the AP of every class out."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atss_core.evaluation.backends import AUTO, IOU_50, Measured, choose_backend, measure
from atss_core.evaluation.metrics import METRIC_NAMES, CocoMetrics, mean_defined
from atss_core.evaluation.voc import VocMetrics
from atss_core.structures import BoxList
from atss_core.structures.boxes import to_xywh
from atss_core.utils.files import atomic_write

logger = logging.getLogger(__name__)


class CocoEvaluator:
    """Collect the detections of a dataset and measure them.

    Args:
        coco_dict: the parsed COCO JSON: "images" and, to measure, "annotations". It is not changed.
        category_ids: label l in 1..C is the category ``category_ids[l - 1]``.
        class_names: in the order of the labels.
        image_ids: the images of the dataset.
        backend: the library that computes the metrics, see ``choose_backend``.

    Attributes:
        measured: all arrays of the last evaluation.

    Raises:
        ValueError: if numbers of names and categories differ, an id is not in the JSON, or the library is not
            installed.
    """

    def __init__(
        self,
        coco_dict: dict[str, Any],
        category_ids: Sequence[int],
        class_names: Sequence[str],
        image_ids: Sequence[int],
        backend: str = AUTO,
    ) -> None:
        if len(category_ids) != len(class_names):
            raise ValueError(
                f"class_names: expected a name for each of {len(category_ids)} categories, got "
                f"{len(class_names)} names. Pass both in the order of the labels."
            )
        sizes = {image["id"]: (image["height"], image["width"]) for image in coco_dict["images"]}
        unknown = sorted(set(image_ids) - sizes.keys())
        if unknown:
            raise ValueError(
                f"image_ids: expected ids of the annotation file, got {_some(unknown)}. Use ids of 'images'."
            )
        self.category_ids = list(category_ids)
        self.class_names = list(class_names)
        self.image_sizes = {i: sizes[i] for i in image_ids}
        self.backend = choose_backend(backend)
        self._annotations = coco_dict.get("annotations") or []
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._results: dict[int, list[dict[str, Any]]] = {}
        self._num_dropped: dict[int, int] = {}
        self.measured: Measured | None = None

    def process(self, image_id: int, result: BoxList) -> None:
        """Add the detections of an image.

        The last call counts for an image that comes twice, as padded distributed samplers cause. Boxes and
        scores that are NaN or infinite are dropped, see ``warn_of_dropped``.

        Args:
            image_id: the id of the image in the JSON.
            result: boxes, labels in 1..C and scores, in pixels of the network input, on any device.

        Raises:
            ValueError: if the image or a label is not in the dataset, or labels or scores are missing.
        """
        if image_id not in self.image_sizes:
            raise ValueError(
                f"image_id: expected one of {len(self.image_sizes)} ids of the dataset, got {image_id}. "
                "Build the evaluator with the dataset that is evaluated."
            )
        if result.labels is None or result.scores is None:
            raise ValueError(
                f"result: expected labels and scores, got {result}. Pass detections, not ground truth."
            )
        # In float64, as pycocotools computes: rounded to float32, an IoU at a threshold falls to either side.
        result = result.to("cpu")
        result = BoxList(result.boxes.double(), result.image_size, result.labels, result.scores)
        result = result.resize(self.image_sizes[image_id])
        finite = result.drop_not_finite()
        self._num_dropped[image_id] = len(result) - len(finite)
        assert finite.labels is not None
        assert finite.scores is not None
        # Label 0 would silently become the last category.
        wrong = finite.labels[(finite.labels < 1) | (finite.labels > len(self.category_ids))]
        if len(wrong):
            raise ValueError(
                f"result: expected labels in 1..{len(self.category_ids)}, got "
                f"{_some(wrong.unique().tolist())}. Use a model with the number of classes of the dataset."
            )
        columns = (to_xywh(finite.boxes).tolist(), finite.labels.tolist(), finite.scores.tolist())
        self._results[image_id] = [
            {"image_id": image_id, "category_id": self.category_ids[label - 1], "bbox": box, "score": score}
            for box, label, score in zip(*columns, strict=True)
        ]

    def warn_of_dropped(self) -> None:
        """Warn of detections that were not finite; ``evaluate`` does so."""
        num_dropped = sum(self._num_dropped.values())
        if num_dropped:
            logger.warning(
                "dropped %d detections in %d images: expected finite boxes and scores, got NaN or infinity. "
                "Look at the losses of the training, which may have diverged.",
                num_dropped,
                sum(map(bool, self._num_dropped.values())),
            )

    @property
    def tested_ids(self) -> list[int]:
        """Return the processed images, in the order of the dataset."""
        return [i for i in self.image_sizes if i in self._results]

    @property
    def results(self) -> list[dict[str, Any]]:
        """Return all detections as COCO results, by image in the order of the dataset."""
        return [result for i in self.tested_ids for result in self._results[i]]

    @property
    def ground_truth(self) -> list[dict[str, Any]]:
        """Return the annotations of the processed images, with the fields of the box metrics.

        Missing and null fields have their defaults; "ignore" makes a crowd, as in training.
        """
        return [
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                "area": _area(annotation),
                "iscrowd": int(bool(annotation.get("iscrowd") or annotation.get("ignore"))),
            }
            for annotation in self._annotations
            if annotation["image_id"] in self._results
        ]

    def evaluate(self) -> CocoMetrics:
        """Measure the detections on the processed images.

        Raises:
            ValueError: if the dataset has no annotations or no image was processed.
        """
        if not self._annotations:
            raise ValueError(
                "coco_dict: expected annotations, got none: the dataset has no annotations. Save the results "
                "and send them to the server that holds the ground truth."
            )
        if not self._results:
            raise ValueError("expected detections of at least one image, got none. Call process() first.")
        self.warn_of_dropped()
        if len(self._results) < len(self.image_sizes):
            logger.warning("measuring %d of %d images", len(self._results), len(self.image_sizes))
        self.measured = measured = measure(
            self.backend, list(self._results), self.category_ids, self.ground_truth, self.results
        )
        logger.info("measured with %s", measured.backend)
        # (IoU thresholds, recalls) of each class, over all areas.
        by_id = {i: measured.precision[:, :, k, 0] for k, i in enumerate(measured.category_ids)}
        classes = list(zip(self.class_names, self.category_ids, strict=True))
        return CocoMetrics(
            overall=dict(zip(METRIC_NAMES, map(float, measured.stats), strict=True)),
            per_class={name: mean_defined(by_id[i]) for name, i in classes},
            per_class_ap50={name: mean_defined(by_id[i][IOU_50]) for name, i in classes},
        )


def save_results(
    folder: str | Path,
    results: Sequence[dict[str, Any]],
    metrics: CocoMetrics | None = None,
    voc_metrics: VocMetrics | None = None,
) -> None:
    """Write ``bbox.json``, which COCO servers accept, and ``metrics.json`` if there are metrics.

    The VOC metrics are in the latter under "voc". Each file is written atomically.
    """
    with atomic_write(Path(folder) / "bbox.json", "w") as stream:
        json.dump(list(results), stream)
    if metrics is not None:
        voc = {} if voc_metrics is None else {"voc": voc_metrics.to_dict()}
        with atomic_write(Path(folder) / "metrics.json", "w") as stream:
            json.dump({**metrics.to_dict(), **voc}, stream, indent=2)


def _area(annotation: dict[str, Any]) -> float:
    area = annotation.get("area")
    return annotation["bbox"][2] * annotation["bbox"][3] if area is None else area


def _some(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
