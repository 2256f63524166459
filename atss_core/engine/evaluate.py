"""Evaluate a detector on the test sets, once or periodically: detections, metrics, result files, report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from atss_core.checkpoint.checkpointer import Checkpointer
from atss_core.data import DetectionDataset, EvalBatchSampler
from atss_core.engine.inference import Inference, Timing, gather_detections, run_inference
from atss_core.engine.lock import lock_folder
from atss_core.engine.training_log import TrainingLog
from atss_core.evaluation import (
    CocoEvaluator,
    CocoMetrics,
    VocMetrics,
    check_expected_results,
    evaluate_voc,
    save_results,
)
from atss_core.structures import BoxList
from atss_core.utils import dist
from atss_core.utils.files import (
    append_json,
    atomic_write,
    auxiliary,
    keep_lines,
    on_main_process,
    read_records,
    remove_leftovers,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """A dataset with annotations after its evaluation; ``voc_metrics`` only for VOC's format."""

    dataset: DetectionDataset
    evaluator: CocoEvaluator
    metrics: CocoMetrics
    voc_metrics: VocMetrics | None
    timing: Timing


@dataclass(frozen=True)
class Evaluation:
    """Evaluate a detector on its test sets.

    Results go to ``<folder>/<dataset>/``: ``predictions.pth`` (detections by image id, boxes in pixels of the
    original image), ``bbox.json`` (COCO results), ``metrics.json`` and, if final, ``report.html``.

    Attributes:
        inference: of the detector.
        loaders: of the test sets, which are their ``dataset``.
        folder: receives the results.
        backend: the library that measures, a value of TEST.COCO_EVAL.
        expected_results: rows (task, metric, mean, standard deviation), compared with final metrics.
        sigma_tolerance: allowed deviation from them, in standard deviations.
        report: returns the report of a dataset as HTML; None writes no report.
        is_training: whether a file that cannot be written is a warning, because training goes on.
    """

    inference: Inference
    loaders: Sequence[DataLoader]
    folder: Path
    backend: str = "auto"
    expected_results: Sequence = ()
    sigma_tolerance: float = 4.0
    report: Callable[[Evaluated], str] | None = None
    is_training: bool = False

    def run(self, is_final: bool = True) -> dict[str, CocoMetrics]:
        """Evaluate; returns the metrics by dataset name, on the main process, where there are annotations."""
        evaluated = [self._evaluate(loader, is_final) for loader in self.loaders]
        metrics = {each.dataset.name: each.metrics for each in evaluated if each is not None}
        for each in metrics.values() if is_final else ():
            check_expected_results(each, self.expected_results, self.sigma_tolerance)
        return metrics

    def _evaluate(self, loader: DataLoader, is_final: bool) -> Evaluated | None:
        dataset = loader.dataset
        assert isinstance(dataset, DetectionDataset)
        assert isinstance(loader.batch_sampler, EvalBatchSampler)
        results, timing = run_inference(self.inference, loader, loader.batch_sampler.num_images)
        logger.info("%s: %s", dataset.name, timing)
        dist.barrier()  # the slowest process may take longer than others wait elsewhere
        gathered = gather_detections(results)
        evaluated = None
        if dist.is_main():
            folder = self.folder / dataset.name
            with lock_folder(folder, patience=300, required=False):  # two evaluations never mix results
                remove_leftovers(folder)
                evaluated = write_results(dataset, gathered, folder, self.backend, timing, self.is_training)
                if evaluated is not None and is_final and self.report is not None:
                    path = folder / "report.html"
                    with _may_fail(path, self.is_training):
                        page = self.report(evaluated)
                        with atomic_write(path, "w") as file:
                            file.write(page)
                        logger.info("Report: %s", path)
        dist.barrier()  # so that no process ends or trains on while the main one measures
        return evaluated


def write_results(
    dataset: DetectionDataset,
    results: dict[int, BoxList],
    folder: Path,
    backend: str = "auto",
    timing: Timing | None = None,
    is_training: bool = False,
) -> Evaluated | None:
    """Write detections by image id and, if the dataset has annotations, their metrics, and return these."""
    evaluator = CocoEvaluator(
        dataset.coco_dict, dataset.category_ids, dataset.class_names, dataset.image_ids, backend
    )
    for image_id in sorted(results):
        evaluator.process(image_id, results[image_id])
    with _may_fail(folder / "predictions.pth", is_training):
        _save_predictions(folder / "predictions.pth", results, dataset)
    with _may_fail(folder / "bbox.json", is_training):
        save_results(folder, evaluator.results)
    if not dataset.has_annotations:
        evaluator.warn_of_dropped()
        logger.info("%s has no annotations: results are in %s", dataset.name, folder)
        return None
    metrics, voc_metrics = evaluator.evaluate(), None
    if dataset.format == "VOC":
        evaluated = [a for a in dataset.coco_dict["annotations"] if a["image_id"] in results]
        voc_metrics = evaluate_voc(evaluated, evaluator.results, dataset.category_ids, dataset.class_names)
    with _may_fail(folder / "metrics.json", is_training):
        save_results(folder, evaluator.results, metrics, voc_metrics)
    logger.info("%s\n%s", dataset.name, metrics.table())
    if voc_metrics is not None:
        logger.info("%s: %s", dataset.name, voc_metrics.line())
    return Evaluated(dataset, evaluator, metrics, voc_metrics, timing or Timing())


def _may_fail(path: Path, is_training: bool) -> AbstractContextManager:
    """Turn a failure to write a file into a warning while training, which goes on without it."""
    return auxiliary(path) if is_training else nullcontext()


def _save_predictions(path: Path, results: dict[int, BoxList], dataset: DetectionDataset) -> None:
    """Write detections by image id, as tensors in pixels of the original image."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in dataset.coco_dict["images"]}
    resized = {image_id: boxes.resize(sizes[image_id]) for image_id, boxes in results.items()}
    names = ("boxes", "scores", "labels", "image_size")
    predictions = {i: {name: getattr(boxes, name) for name in names} for i, boxes in resized.items()}
    with atomic_write(path) as file:
        torch.save(predictions, file)


@dataclass(eq=False)
class PeriodicEvaluation:
    """Evaluate every ``period`` iterations and after the last one, and keep the best weights.

    A resumed run reads from its file of metrics which iterations have been evaluated, and the best metric.
    The checkpoint holds the best metric as well, so that it outlives the file.

    Attributes:
        evaluation: of the current weights.
        checkpointer: saves ``model_best.pth``, and has the folder of ``evaluations.jsonl``, with a JSON line
            per evaluation and dataset. Lines of iterations that are not done yet are dropped.
        log: of the training; its TensorBoard receives the metrics as well.
        period: iterations between evaluations.
        best_metric: chooses the best, by the first dataset.
        final_metrics: of the evaluation after the last iteration, by dataset name; None before it.
    """

    evaluation: Evaluation
    checkpointer: Checkpointer
    log: TrainingLog
    period: int
    best_metric: str
    final_metrics: dict[str, CocoMetrics] | None = None

    def __post_init__(self) -> None:
        self.file = self.checkpointer.folder / "evaluations.jsonl"
        on_main_process(lambda: keep_lines(self.file, self.log.start_iter))
        records = read_records(self.file, self.log.start_iter)
        lines = [line for line in records if isinstance(line.get(self.best_metric), int | float)]
        self._evaluated = {line["iteration"] for line in lines}
        # The first line of an iteration is that of the first dataset.
        first_lines = {line["iteration"]: line[self.best_metric] for line in reversed(lines)}
        best = self.checkpointer.best.get(self.best_metric, -1.0)
        self.checkpointer.best = {self.best_metric: max([best, *first_lines.values()])}

    def is_due(self, iteration: int) -> bool:
        """Return whether to evaluate after this iteration; all processes get the same answer."""
        is_due = iteration > 0 and iteration % self.period == 0
        return (is_due or iteration >= self.log.max_iter) and iteration not in self._evaluated

    def __call__(self, iteration: int) -> None:
        """Evaluate, log the metrics and save the weights if they are the best so far."""
        self.checkpointer.share_buffers()
        metrics = self.evaluation.run(is_final=iteration >= self.log.max_iter)
        self._evaluated.add(iteration)
        if iteration >= self.log.max_iter:
            self.final_metrics = metrics
        if dist.is_main():
            value = next(iter(metrics.values())).overall[self.best_metric]
            best = self.checkpointer.best[self.best_metric]
            if value > best or not (self.checkpointer.folder / "model_best.pth").is_file():
                self.checkpointer.best = {self.best_metric: float(max(value, best))}
                self.checkpointer.save_best(iteration, value)
            for name, each in metrics.items():
                append_json(self.file, {"iteration": iteration, "dataset": name, **each.overall})
                self.log.board.add(iteration, name, each.overall)
        dist.barrier()
