"""COCO detection metrics: detections in, twelve numbers and the AP of every class out."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from atss_core.evaluation.voc import VocMetrics
from atss_core.structures import BoxList
from atss_core.structures.boxes import to_xywh
from atss_core.utils.files import atomic_write

logger = logging.getLogger(__name__)

# In the order of COCOeval.stats. AP and AR100 average over IoU 0.5 to 0.95; s, m, l are object areas up to
# 32^2, up to 96^2 and above, in square pixels of the original picture.
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
UNDEFINED = -1.0
TABLE_WIDTH = 100


@dataclass(frozen=True)
class CocoMetrics:
    """The metrics of one evaluation, in 0..1, -1 where there is no ground truth to measure against.

    Attributes:
        overall: the twelve numbers of ``METRIC_NAMES``.
        per_class: class name -> AP.
        per_class_ap50: class name -> AP at IoU 0.5.
    """

    overall: dict[str, float]
    per_class: dict[str, float] = field(default_factory=dict)
    per_class_ap50: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain dictionaries, ready for JSON."""
        return {
            "overall": dict(self.overall),
            "per_class": dict(self.per_class),
            "per_class_ap50": dict(self.per_class_ap50),
        }

    def table(self, sort_by: str = "name") -> str:
        """Return all numbers in percent as text of at most 100 columns.

        Args:
            sort_by: "name" orders the classes by the alphabet, "AP" puts the best first.

        Raises:
            ValueError: if ``sort_by`` is something else.
        """
        orders: dict[str, Callable[[str], str | float]] = {
            "name": str.lower,
            "AP": lambda name: -self.per_class[name],
        }
        if sort_by not in orders:
            raise ValueError(f"sort_by must be one of {', '.join(orders)}, got {sort_by!r}")
        overall = [
            "".join(f"{name:>7}" for name in self.overall),
            "".join(f"{_percent(value):>7}" for value in self.overall.values()),
        ]
        names = sorted(self.per_class, key=orders[sort_by])
        rows = [(name, self.per_class[name], self.per_class_ap50.get(name, UNDEFINED)) for name in names]
        return "\n".join([*overall, "", *_class_columns(rows)] if rows else overall)


class CocoEvaluator:
    """Collect the detections of a data set and measure them with pycocotools.

    Args:
        coco_dict: the parsed COCO JSON: "images" and, to measure, "annotations". It is not changed.
        category_ids: label l in 1..C means the category ``category_ids[l - 1]``.
        class_names: the name of each label, in the same order.
        image_ids: the pictures of the data set.

    Raises:
        ValueError: if the names do not go with the categories or an id is not in the JSON.
    """

    def __init__(
        self,
        coco_dict: dict[str, Any],
        category_ids: Sequence[int],
        class_names: Sequence[str],
        image_ids: Sequence[int],
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
        self._annotations = coco_dict.get("annotations") or []
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._results: dict[int, list[dict[str, Any]]] = {}

    def process(self, image_id: int, result: BoxList) -> None:
        """Take the detections of one picture.

        A picture that comes twice, as padded distributed samplers cause, counts once: the last one stays.

        Args:
            image_id: the id of the picture in the JSON.
            result: boxes, labels in 1..C and scores, in pixels of the network input, on any device.

        Raises:
            ValueError: if the picture or a label is not in the data set, or labels or scores are missing.
        """
        if image_id not in self.image_sizes:
            raise ValueError(
                f"expected one of {len(self.image_sizes)} image ids of the data set, got {image_id};"
                " build the evaluator with the data set that is being tested"
            )
        if result.labels is None or result.scores is None:
            raise ValueError(f"expected labels and scores, got {result}; pass detections, not ground truth")
        result = result.to("cpu").resize(self.image_sizes[image_id])
        self._results[image_id] = list(self._to_coco(image_id, result))

    @property
    def results(self) -> list[dict[str, Any]]:
        """Return all detections as COCO results, by picture in the order of the data set."""
        return [result for i in self.image_sizes for result in self._results.get(i, [])]

    def evaluate(self) -> CocoMetrics:
        """Measure the detections on the pictures that were processed.

        Raises:
            ValueError: if the data set has no annotations or no picture was processed.
        """
        if not self._annotations:
            raise ValueError(
                "expected ground truth, but the data set has no annotations;"
                " save the results and send them to whoever holds the ground truth"
            )
        if not self._results:
            raise ValueError("expected detections of at least one picture, got none; call process() first")
        if len(self._results) < len(self.image_sizes):
            logger.warning("measuring %d of %d pictures", len(self._results), len(self.image_sizes))
        with _log_stdout():
            measured = self._run_coco_eval()
        return self._collect(measured)

    def _to_coco(self, image_id: int, result: BoxList) -> Iterator[dict[str, Any]]:
        assert result.labels is not None
        assert result.scores is not None
        self._check_labels(result.labels)
        boxes = to_xywh(result.boxes.float()).tolist()
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

    def _run_coco_eval(self) -> COCOeval:
        evaluation = COCOeval(self._ground_truth(), self._detections(), "bbox")
        evaluation.params.imgIds = list(self._results)
        evaluation.params.catIds = self.category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation

    def _ground_truth(self) -> COCO:
        """Copy what the box metrics need, with defaults for what hand-made files leave out."""
        # pycocotools takes a match with annotation id 0 for no match, so all are numbered anew from 1.
        kept = (annotation for annotation in self._annotations if annotation["image_id"] in self._results)
        return self._index(
            {
                "id": number,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
                "iscrowd": annotation.get("iscrowd", 0),
            }
            for number, annotation in enumerate(kept, start=1)
        )

    def _detections(self) -> COCO:
        # Not COCO.loadRes: it fails on an empty list.
        return self._index(
            {"id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0, **result}
            for number, result in enumerate(self.results, start=1)
        )

    def _index(self, annotations: Iterator[dict[str, Any]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image_id} for image_id in self._results],
            "categories": [{"id": category_id} for category_id in self.category_ids],
            "annotations": list(annotations),
        }
        coco.createIndex()
        return coco

    def _collect(self, evaluation: COCOeval) -> CocoMetrics:
        names = dict(zip(self.category_ids, self.class_names, strict=True))
        # (IoU thresholds, recalls, classes), over all areas, with up to 100 detections a picture.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        # COCOeval has sorted the categories.
        by_id = {i: precision[:, :, k] for k, i in enumerate(evaluation.params.catIds)}
        return CocoMetrics(
            overall=dict(zip(METRIC_NAMES, map(float, evaluation.stats), strict=True)),
            per_class={name: _mean(by_id[i]) for i, name in names.items()},
            per_class_ap50={name: _mean(by_id[i][0]) for i, name in names.items()},
        )


def check_expected_results(
    metrics: CocoMetrics, expected: Sequence[tuple[str, str, float, float]], sigma_tol: float
) -> list[str]:
    """Compare metrics with published ones and log every comparison.

    Args:
        metrics: what was measured.
        expected: (task, metric, mean, standard deviation), for example ("bbox", "AP", 0.393, 0.002).
        sigma_tol: how many standard deviations from the mean are accepted.

    Returns:
        A message for each metric out of its range; empty if all are as expected.

    Raises:
        ValueError: if a task or metric does not exist or an entry has not four parts.
    """
    failures = []
    for entry in expected:
        name, mean, std = _parse_expected(entry, metrics.overall)
        actual = metrics.overall[name]
        message = f"bbox {name} is {actual:.4f}, expected {mean:.4f} +- {sigma_tol * std:.4f}"
        if abs(actual - mean) <= sigma_tol * std:
            logger.info("PASS: %s", message)
        else:
            logger.error("FAIL: %s", message)
            failures.append(message)
    return failures


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


def _parse_expected(entry: Sequence[Any], choices: dict[str, float]) -> tuple[str, float, float]:
    if len(entry) != 4:
        raise ValueError(
            f"expected (task, metric, mean, std), got {entry!r}; write it like ('bbox', 'AP', 0.393, 0.002)"
        )
    task, name, mean, std = entry
    if task != "bbox":
        raise ValueError(f"expected the task 'bbox', got {task!r}; only boxes are detected here")
    if name not in choices:
        raise ValueError(f"expected a metric out of {', '.join(choices)}, got {name!r}; correct the name")
    return name, float(mean), float(std)


def _write_json(file: Path, content: Any, indent: int | None = None) -> None:
    with atomic_write(file, "w") as stream:
        json.dump(content, stream, indent=indent)


@contextlib.contextmanager
def _log_stdout() -> Iterator[None]:
    """Send what pycocotools prints to the log, at debug level."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield
    for line in printed.getvalue().splitlines():
        logger.debug("%s", line.rstrip())


def _mean(precision: np.ndarray) -> float:
    defined = precision[precision > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def _percent(value: float) -> str:
    return "-" if value == UNDEFINED else f"{100 * value:.1f}"


def _class_columns(rows: Sequence[tuple[str, float, float]]) -> list[str]:
    """Lay out (name, AP, AP50) in columns that are read from top to bottom."""
    gap, numbers = 4, 14
    name_width = min(max(len("class"), *(len(name) for name, _, _ in rows)), TABLE_WIDTH - numbers)
    num_columns = min((TABLE_WIDTH + gap) // (name_width + numbers + gap), len(rows))
    num_lines = -(-len(rows) // num_columns)
    cells = [_class_cell(n[:name_width], _percent(ap), _percent(ap50), name_width) for n, ap, ap50 in rows]
    header = _class_cell("class", "AP", "AP50", name_width)
    separator = " " * gap
    lines = [separator.join(cells[line::num_lines]) for line in range(num_lines)]
    return [separator.join([header] * len(range(0, len(cells), num_lines))), *lines]


def _class_cell(name: str, ap: str, ap50: str, name_width: int) -> str:
    return f"{name:<{name_width}}{ap:>7}{ap50:>7}"


def _some(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
