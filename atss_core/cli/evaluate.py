"""Test a detector on the data sets of DATASETS.TEST with the metrics of COCO, and of VOC on its layout."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from atss_core import __version__
from atss_core.apps.check.checks import crowded_images, unused_ranges
from atss_core.apps.report.images import ImageSource
from atss_core.apps.report.report import ReportInput, build_report
from atss_core.checkpoint.backbones import is_imagenet_backbone
from atss_core.checkpoint.checkpointer import read_last_checkpoint
from atss_core.checkpoint.weights import load_trained, read_detector
from atss_core.cli.common import (
    add_config_arguments,
    add_launcher_argument,
    load_config,
    start,
    start_log,
)
from atss_core.cli.parser import CommandParser
from atss_core.config import checked
from atss_core.data import (
    DetectionDataset,
    EvalBatchSampler,
    build_datasets,
    build_test_loaders,
    check_same_classes,
    fill_num_classes,
)
from atss_core.engine import gather_detections, run_inference
from atss_core.engine.build import build_inference, move_detector
from atss_core.engine.inference import Inference
from atss_core.evaluation import (
    CocoEvaluator,
    CocoMetrics,
    VocMetrics,
    check_expected_results,
    choose_backend,
    evaluate_voc,
    save_results,
)
from atss_core.modeling import Detector, build_detector
from atss_core.structures import BoxList
from atss_core.utils import dist
from atss_core.utils.env import environment_report
from atss_core.utils.files import atomic_write, auxiliary, remove_leftovers
from atss_core.utils.lock import lock_folder

logger = logging.getLogger(__name__)

EXAMPLE = """
atss test --config-file atss_R_50_FPN_1x \\
    MODEL.WEIGHT ATSS_R_50_FPN_1x.pth TEST.IMS_PER_BATCH 4
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
    parser = CommandParser("atss test", __doc__, EXAMPLE)
    add_launcher_argument(parser)
    add_config_arguments(parser)
    cfg = load_config(parser.parse_args(argv))
    device = start(cfg)
    start_log(cfg, device, "test_log.txt")
    source, checkpoint = read_weights_to_test(cfg)
    test_sets = build_datasets(cfg, training=False)
    class_names = test_sets[0].class_names
    for dataset in test_sets[1:]:
        check_same_classes(dataset, class_names, test_sets[0].name)
    cfg = fill_num_classes(cfg, class_names)
    detector = build_detector(cfg)
    load_trained(detector, checkpoint, source, class_names)
    logger.info("Testing %s", source)
    detector = move_detector(cfg, detector, device)
    dist.barrier()  # one host may download weights for longer than another waits
    test_detector(
        cfg, detector, device, is_final=True, test_sets=test_sets, weights=str(source), is_training=False
    )


def read_weights_to_test(cfg: CfgNode) -> tuple[str, dict[str, Any]]:
    """Read MODEL.WEIGHT, or the last checkpoint of OUTPUT_DIR where that names ImageNet weights or nothing.

    Returns:
        As ``read_detector``.

    Raises:
        ValueError: if there is neither.
    """
    weights = cfg.MODEL.WEIGHT
    if weights and not is_imagenet_backbone(weights):
        return read_detector(weights)
    path, checkpoint = read_last_checkpoint(Path(cfg.OUTPUT_DIR))
    if path is None:
        raise ValueError(
            f"nothing to test: MODEL.WEIGHT is {weights!r} and OUTPUT_DIR {cfg.OUTPUT_DIR!r} has no "
            f"checkpoint; give MODEL.WEIGHT a detector (.pth or .safetensors, a file or URL)"
        )
    return str(path), checkpoint


def test_detector(
    cfg: CfgNode,
    detector: Detector,
    device: torch.device,
    is_final: bool,
    test_sets: Sequence[DetectionDataset] | None = None,  # noqa: PT028 (this is no test of pytest's)
    weights: str = "",  # noqa: PT028
    is_training: bool = True,  # noqa: PT028
) -> dict[str, CocoMetrics]:
    """Run the detector on each test set, write its results, and return the metrics by data set name.

    Results go to ``OUTPUT_DIR/inference/<data set>/``: ``predictions.pth`` (detections by image id, boxes in
    pixels of the original image), ``bbox.json`` (COCO results) and ``metrics.json``. If this ``is_final``,
    they are compared with TEST.EXPECTED_RESULTS, and ``report.html`` is written.

    Args:
        cfg: the configuration.
        detector: on the device.
        device: where it runs.
        is_final: whether this is the test that counts, and not one during training.
        test_sets: opened unless they are given.
        weights: where they come from, for the report; empty if they were trained by this process.
        is_training: whether a training goes on without the files of results that cannot be written.
    """
    cfg = checked(cfg)
    inference = build_inference(cfg, detector, device)
    backend = choose_backend(cfg.TEST.COCO_EVAL)
    about = None
    if is_final and cfg.TEST.REPORT:
        about = {
            "command": command_of_process(),
            "weights": weights or f"as this training has left them in {cfg.OUTPUT_DIR}",
            "software": f"atss {__version__}; {environment_report(device)}",
            "configuration": cfg.dump(),
        }
    metrics = {}
    for loader in build_test_loaders(cfg, dist.rank(), dist.world_size(), test_sets):
        dataset = loader.dataset
        assert isinstance(dataset, DetectionDataset)
        folder = Path(cfg.OUTPUT_DIR) / "inference" / dataset.name
        defects = [*crowded_images(cfg, dataset), *unused_ranges(dataset)] if is_final else []
        warnings = [defect.message for defect in defects]
        for warning in warnings:
            logger.warning("%s: %s", dataset.name, warning)
        if about is not None:
            about["warnings"] = "\n".join(warnings)
        found = test_on(dataset, loader, inference, folder, backend, about, is_training)
        if found is not None:
            metrics[dataset.name] = found
        if found is not None and is_final:
            check_expected_results(found, cfg.TEST.EXPECTED_RESULTS, cfg.TEST.EXPECTED_RESULTS_SIGMA_TOL)
    return metrics


def command_of_process() -> str:
    """Return what was typed to start this process."""
    program, *words = sys.argv
    start = ["python", program] if program.endswith(".py") else [Path(program).name]
    return shlex.join([*start, *words])


def test_on(
    dataset: DetectionDataset,
    loader: DataLoader,
    inference: Inference,
    folder: Path,
    backend: str = "auto",  # noqa: PT028
    about: Mapping[str, str] | None = None,  # noqa: PT028
    is_training: bool = False,  # noqa: PT028
) -> CocoMetrics | None:
    """Test on one data set; returns the metrics on the main process if the data set has annotations.

    Args:
        dataset: to test on.
        loader: of its images.
        inference: of the detector.
        folder: for the results.
        backend: the library that measures, a value of TEST.COCO_EVAL.
        about: what the report tells of its origin, with the configuration; None for no report.
        is_training: as for ``test_detector``.
    """
    assert isinstance(loader.batch_sampler, EvalBatchSampler)
    results, timing = run_inference(inference, loader, loader.batch_sampler.num_images)
    logger.info("%s: %s", dataset.name, timing)
    dist.barrier()  # the slowest process may take longer than others wait elsewhere
    gathered = gather_detections(results)
    metrics = None
    if dist.is_main():
        about = None if about is None else {**about, "time": str(timing)}
        with lock_folder(folder, patience=300, required=False):  # two tests never mix their results
            remove_leftovers(folder)
            metrics = write_results(dataset, gathered, folder, backend, about, is_training)
    dist.barrier()  # so that no process ends or trains on while the main one measures
    return metrics


def write_results(
    dataset: DetectionDataset,
    results: dict[int, BoxList],
    folder: Path,
    backend: str = "auto",
    about: Mapping[str, str] | None = None,
    is_training: bool = False,
) -> CocoMetrics | None:
    """Write detections by image id and, if the data set has annotations, measure them and report on them."""
    attempt = auxiliary if is_training else nullcontext
    evaluator = CocoEvaluator(
        dataset.coco_dict, dataset.category_ids, dataset.class_names, dataset.image_ids, backend
    )
    for image_id in sorted(results):
        evaluator.process(image_id, results[image_id])
    with attempt(folder / "predictions.pth"):
        save_predictions(folder / "predictions.pth", results, dataset)
    with attempt(folder / "bbox.json"):
        save_results(folder, evaluator.results)
    if not dataset.has_annotations:
        evaluator.warn_of_dropped()
        logger.info("%s has no annotations: results are in %s", dataset.name, folder)
        return None
    metrics = evaluator.evaluate()
    voc_metrics = None
    if dataset.format == "VOC":
        tested = [a for a in dataset.coco_dict["annotations"] if a["image_id"] in results]
        voc_metrics = evaluate_voc(tested, evaluator.results, dataset.category_ids, dataset.class_names)
    with attempt(folder / "metrics.json"):
        save_results(folder, evaluator.results, metrics, voc_metrics)
    logger.info("%s\n%s", dataset.name, metrics.table())
    if voc_metrics is not None:
        logger.info("%s: %s", dataset.name, voc_metrics.line())
    if about is not None:
        with attempt(folder / "report.html"):
            write_report(folder / "report.html", dataset, evaluator, metrics, voc_metrics, about)
    return metrics


def write_report(
    path: Path,
    dataset: DetectionDataset,
    evaluator: CocoEvaluator,
    metrics: CocoMetrics,
    voc_metrics: VocMetrics | None,
    about: Mapping[str, str],
) -> None:
    """Write the report of a test and tell where it is."""
    indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    names = {i: str(dataset.image_info(index)["file_name"]) for i, index in indices.items()}
    facts = {name: words for name, words in about.items() if name not in ("configuration", "warnings")}
    page = build_report(
        ReportInput(
            dataset.name,
            evaluator,
            metrics,
            ImageSource(lambda image_id: dataset.load_image(indices[image_id]), names),
            voc_metrics,
            facts={
                **facts,
                "data": f"{dataset.path} ({dataset.format} format)",
                "date": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
            },
            configuration=about["configuration"],
            warnings=about.get("warnings", "").splitlines(),
        )
    )
    with atomic_write(path, "w") as file:
        file.write(page)
    logger.info("Report: %s", path)


def save_predictions(path: Path, results: dict[int, BoxList], dataset: DetectionDataset) -> None:
    """Write detections by image id, as tensors in pixels of the original image."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in dataset.coco_dict["images"]}
    predictions = {}
    for image_id, result in results.items():
        result = result.resize(sizes[image_id])
        predictions[image_id] = {
            "boxes": result.boxes,
            "scores": result.scores,
            "labels": result.labels,
            "image_size": result.image_size,
        }
    with atomic_write(path) as file:
        torch.save(predictions, file)
