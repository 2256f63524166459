"""COCO detection metrics: detections in, twelve numbers and the AP of every class out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atss_core.evaluation.backends import AUTO, IOU_50, UNDEFINED, Measured, choose_backend, measure
from atss_core.evaluation.metrics import METRIC_NAMES, CocoMetrics
from atss_core.evaluation.voc import VocMetrics
from atss_core.structures import BoxList
from atss_core.structures.boxes import to_xywh
from atss_core.utils.files import atomic_write

logger = logging.getLogger(__name__)


class CocoEvaluator:
    """Collect the detections of a data set and measure them.

    Args:
        coco_dict: the parsed COCO JSON: "images" and, to measure, "annotations". It is not changed.
        category_ids: label l in 1..C means the category ``category_ids[l - 1]``.
        class_names: the name of each label, in the same order.
        image_ids: the images of the data set.
        backend: the library that measures, see ``choose_backend``.

    Attributes:
        measured: what the last evaluation gave, in all detail.

    Raises:
        ValueError: if the names do not go with the categories, an id is not in the JSON, or the library is
            not installed.
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
                f"expected a name for each of {len(category_ids)} categories, got {len(class_names)} names;"
                " give both in the order of the labels"
            )
        sizes = {image["id"]: (image["height"], image["width"]) for image in coco_dict["images"]}
        unknown = sorted(set(image_ids) - sizes.keys())
        if unknown:
            raise ValueError(
                f"expected image ids of the annotation file, got {_some(unknown)}; take those in 'images'"
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
        """Take the detections of one image.

        An image that comes twice, as padded distributed samplers cause, counts once: the last one stays.
        Boxes and scores that are NaN or infinite are dropped, which ``warn_of_dropped`` tells.

        Args:
            image_id: the id of the image in the JSON.
            result: boxes, labels in 1..C and scores, in pixels of the network input, on any device.

        Raises:
            ValueError: if the image or a label is not in the data set, or labels or scores are missing.
        """
        if image_id not in self.image_sizes:
            raise ValueError(
                f"expected one of {len(self.image_sizes)} image ids of the data set, got {image_id};"
                " build the evaluator with the data set that is being tested"
            )
        if result.labels is None or result.scores is None:
            raise ValueError(f"expected labels and scores, got {result}; pass detections, not ground truth")
        # In float64, as pycocotools computes: rounded to float32, an IoU at a threshold falls to either side.
        result = result.to("cpu")
        result = BoxList(result.boxes.double(), result.image_size, result.labels, result.scores)
        result = result.resize(self.image_sizes[image_id])
        finite = result.drop_not_finite()
        self._num_dropped[image_id] = len(result) - len(finite)
        self._results[image_id] = list(self._to_coco(image_id, finite))

    def warn_of_dropped(self) -> None:
        """Warn of detections that were not finite; ``evaluate`` does so."""
        num_dropped = sum(self._num_dropped.values())
        if num_dropped:
            logger.warning(
                "dropped %d detections in %d images: expected finite boxes and scores, got NaN or infinity."
                " Look at the losses of the training, which may have diverged",
                num_dropped,
                sum(map(bool, self._num_dropped.values())),
            )

    @property
    def tested_ids(self) -> list[int]:
        """Return the images that were processed, in the order of the data set."""
        return [i for i in self.image_sizes if i in self._results]

    @property
    def results(self) -> list[dict[str, Any]]:
        """Return all detections as COCO results, by image in the order of the data set."""
        return [result for i in self.image_sizes for result in self._results.get(i, [])]

    @property
    def ground_truth(self) -> list[dict[str, Any]]:
        """Return the annotations of the images that were processed, with what the box metrics need.

        What hand-made files leave out or set to null has its default; "ignore" makes a crowd, as in training.
        """
        # pycocotools takes a match with annotation id 0 for no match, so all are numbered anew from 1.
        kept = (annotation for annotation in self._annotations if annotation["image_id"] in self._results)
        return [
            {
                "id": number,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                "area": _area(annotation),
                "iscrowd": int(bool(annotation.get("iscrowd") or annotation.get("ignore"))),
            }
            for number, annotation in enumerate(kept, start=1)
        ]

    def evaluate(self) -> CocoMetrics:
        """Measure the detections on the images that were processed.

        Raises:
            ValueError: if the data set has no annotations or no image was processed.
        """
        if not self._annotations:
            raise ValueError(
                "expected ground truth, but the data set has no annotations;"
                " save the results and send them to whoever holds the ground truth"
            )
        if not self._results:
            raise ValueError("expected detections of at least one image, got none; call process() first")
        self.warn_of_dropped()
        if len(self._results) < len(self.image_sizes):
            logger.warning("measuring %d of %d images", len(self._results), len(self.image_sizes))
        self.measured = measure(
            self.backend, list(self._results), self.category_ids, self.ground_truth, self.numbered_results()
        )
        logger.info("measured with %s", self.measured.backend)
        return self._collect(self.measured)

    def _to_coco(self, image_id: int, result: BoxList) -> Iterator[dict[str, Any]]:
        assert result.labels is not None
        assert result.scores is not None
        self._check_labels(result.labels)
        boxes = to_xywh(result.boxes).tolist()
        for box, label, score in zip(boxes, result.labels.tolist(), result.scores.tolist(), strict=True):
            category_id = self.category_ids[label - 1]
            yield {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}

    def _check_labels(self, labels: torch.Tensor) -> None:
        # Label 0 would silently become the last category.
        wrong = labels[(labels < 1) | (labels > len(self.category_ids))]
        if len(wrong):
            raise ValueError(
                f"expected labels in 1..{len(self.category_ids)}, got {_some(wrong.unique().tolist())};"
                " test with the number of classes of the data set"
            )

    def numbered_results(self) -> list[dict[str, Any]]:
        """Return the detections with the fields that the libraries want besides those of COCO results."""
        return [
            {"id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0, **result}
            for number, result in enumerate(self.results, start=1)
        ]

    def _collect(self, measured: Measured) -> CocoMetrics:
        names = dict(zip(self.category_ids, self.class_names, strict=True))
        # (IoU thresholds, recalls) of each class, over all areas.
        by_id = {i: measured.precision[:, :, k, 0] for k, i in enumerate(measured.category_ids)}
        return CocoMetrics(
            overall=dict(zip(METRIC_NAMES, map(float, measured.stats), strict=True)),
            per_class={name: _mean(by_id[i]) for i, name in names.items()},
            per_class_ap50={name: _mean(by_id[i][IOU_50]) for i, name in names.items()},
        )


def save_results(
    folder: str | Path,
    results: Sequence[dict[str, Any]],
    metrics: CocoMetrics | None = None,
    voc_metrics: VocMetrics | None = None,
) -> None:
    """Write ``bbox.json``, which COCO servers accept, and ``metrics.json`` if there are metrics.

    Those of VOC are in the latter under "voc".

    Each file appears whole or not at all, also when the process is killed.
    """
    folder = Path(folder)
    _write_json(folder / "bbox.json", list(results))
    if metrics is not None:
        voc = {} if voc_metrics is None else {"voc": voc_metrics.to_dict()}
        _write_json(folder / "metrics.json", {**metrics.to_dict(), **voc}, indent=2)


def _write_json(file: Path, content: Any, indent: int | None = None) -> None:
    with atomic_write(file, "w") as stream:
        json.dump(content, stream, indent=indent)


def _area(annotation: dict[str, Any]) -> float:
    area = annotation.get("area")
    return annotation["bbox"][2] * annotation["bbox"][3] if area is None else area


def _mean(precision: np.ndarray) -> float:
    defined = precision[precision > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def _some(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
