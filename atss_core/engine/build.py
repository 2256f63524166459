"""Train, evaluate and load a detector from the configuration; no other file here sees ``cfg``."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from atss_core import __version__
from atss_core.checkpoint.backbones import is_imagenet_backbone
from atss_core.checkpoint.checkpointer import Checkpointer, read_last_checkpoint
from atss_core.checkpoint.weights import load_initial_weights, load_trained, read_detector
from atss_core.config import checked
from atss_core.config.catalog import COCO_CLASSES
from atss_core.data import (
    ConcatDetectionDataset,
    DetectionDataset,
    build_collate,
    build_pixel_format,
    build_test_loaders,
    build_test_transform,
    build_train_dataset,
    build_train_loader,
    build_transform,
    check_same_classes,
    fill_num_classes,
    grey_bits,
    pixel_limit,
)
from atss_core.engine.evaluate import Evaluated, Evaluation, PeriodicEvaluation
from atss_core.engine.inference import Inference, SingleScale
from atss_core.engine.lock import lock_folder
from atss_core.engine.step import TrainingStep
from atss_core.engine.train import parallelize, train
from atss_core.engine.training_log import TrainingLog
from atss_core.engine.tta import MultiScale, Scale, nms, vote
from atss_core.evaluation import CocoMetrics, choose_backend
from atss_core.layers import ops_info
from atss_core.modeling import Detector, build_detector
from atss_core.solver import build_ema, build_optimizer, build_scheduler
from atss_core.structures import BoxList
from atss_core.utils import dist, env
from atss_core.utils.files import atomic_write, refuse_overwriting
from atss_core.utils.logging import setup_logging

logger = logging.getLogger(__name__)

# SOLVER.AMP -> the type that convolutions run in.
PRECISIONS = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Below this short side, in pixels, the published code caps the long side as in plain testing.
PLAIN_SHORT_SIDE = 800

# Raises for a dataset that cannot be trained or evaluated on, and logs its small defects.
Check = Callable[[CfgNode, DetectionDataset], None]
# Returns the report of a dataset as HTML; the mapping names what was evaluated, and with which software.
Report = Callable[[CfgNode, Mapping[str, str], Evaluated], str]


def train_detector(
    cfg: CfgNode, *, is_evaluated: bool = True, check: Check | None = None, report: Report | None = None
) -> dict[str, CocoMetrics]:
    """Train a detector, resuming the last checkpoint of OUTPUT_DIR, and evaluate the final weights.

    Args:
        cfg: the configuration.
        is_evaluated: whether to evaluate the final weights; TEST.EVAL_PERIOD does so as well.
        check: of each dataset, before training starts; None skips it.
        report: returns ``report.html`` of the final evaluation, if TEST.REPORT is true; None writes none.

    Returns:
        The final metrics by dataset name, on the main process.

    Raises:
        ValueError: if settings or data are faulty, or another run writes to OUTPUT_DIR.
        TerminatedError: after SIGTERM, when the state is saved.
    """
    cfg = checked(cfg)
    choose_backend(cfg.TEST.COCO_EVAL)
    device = start_run(cfg)
    with lock_folder(Path(cfg.OUTPUT_DIR)) if dist.is_main() else nullcontext():
        start_log(cfg, device, "log.txt")  # that of another run stays as it is
        dataset = build_train_dataset(cfg)
        cfg = fill_num_classes(cfg, dataset.class_names)
        needs_test_sets = is_evaluated or cfg.TEST.EVAL_PERIOD > 0
        loaders = build_test_loaders(cfg, dist.rank(), dist.world_size()) if needs_test_sets else []
        test_sets = _datasets(loaders, dataset.class_names, f"the training set {dataset.name}")
        if cfg.TEST.EVAL_PERIOD and not test_sets[0].has_annotations:
            raise ValueError(
                f"TEST.EVAL_PERIOD: expected a first dataset in DATASETS.TEST with annotations, to choose "
                f"the best checkpoint by, got {test_sets[0].name}. Set it to 0, or put another dataset first."
            )
        if check is not None:
            for each in (*dataset.datasets, *test_sets):
                check(cfg, each)
        step, checkpointer, start_iter = _build_state(cfg, dataset.class_names, device)
        weights = f"as this training has left them in {cfg.OUTPUT_DIR}"
        detector = checkpointer.eval_model
        evaluation = None
        if needs_test_sets:
            evaluation = _build_evaluation(cfg, detector, device, loaders, report, weights, is_training=True)
        metrics = _train(cfg, dataset, step, checkpointer, start_iter, evaluation)
    if metrics is None and is_evaluated:
        assert evaluation is not None
        metrics = evaluation.run()
    return metrics or {}


def _build_state(
    cfg: CfgNode, class_names: list[str], device: torch.device
) -> tuple[TrainingStep, Checkpointer, int]:
    """Build all that is trained; resume it or load initial weights. Returns the start iteration as well."""
    env.seed_everything(cfg.SEED)
    detector = _move(build_detector(cfg), device, cfg.MODEL)
    optimizer = build_optimizer(cfg, detector)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.SOLVER.AMP == "float16")
    ema = build_ema(cfg, detector)
    folder, scheduler = Path(cfg.OUTPUT_DIR), build_scheduler(cfg, optimizer)
    checkpointer = Checkpointer(folder, detector, optimizer, scheduler, class_names, scaler=scaler, ema=ema)
    start_iter = checkpointer.resume()
    if start_iter is None:
        inputs = [cfg.MODEL.WEIGHT] if cfg.MODEL.WEIGHT else []
        outputs = [folder / name for name in ("model_best.pth", "model_final.pth")]
        refuse_overwriting(outputs, inputs, "Set OUTPUT_DIR to another folder.")
        load_initial_weights(
            detector,
            cfg.MODEL.WEIGHT,
            partial=cfg.MODEL.WEIGHT_PARTIAL,
            pixels=build_pixel_format(cfg),
            class_names=class_names,
        )
    dist.barrier()  # one host may download weights for longer than another waits
    model: nn.Module = detector
    if (start_iter or 0) < cfg.SOLVER.MAX_ITER:
        model = parallelize(detector, device, sync_batch_norm=cfg.MODEL.USE_SYNCBN)
    step = TrainingStep(
        detector,
        model,
        optimizer,
        scaler,
        device=device,
        amp=PRECISIONS[cfg.SOLVER.AMP],
        max_grad_norm=cfg.SOLVER.CLIP_GRAD_NORM,
        ema=ema,
    )
    return step, checkpointer, start_iter or 0


def _train(
    cfg: CfgNode,
    dataset: ConcatDetectionDataset,
    step: TrainingStep,
    checkpointer: Checkpointer,
    start_iter: int,
    evaluation: Evaluation | None,
) -> dict[str, CocoMetrics] | None:
    """Train; returns the metrics of the periodic evaluation of the final weights.

    Files of an earlier run stay unchanged until everything that may refuse the settings is built.
    """
    folder, solver = checkpointer.folder, cfg.SOLVER
    is_trained = start_iter >= solver.MAX_ITER
    batches: Iterable[Any] = ()
    if is_trained:
        logger.info("%s is trained already (%d iterations); remove it to train anew", folder, start_iter)
    else:
        batches = build_train_loader(cfg, dataset, start_iter, dist.rank(), dist.world_size())
    if dist.is_main() and not (is_trained and (folder / "config.yml").is_file()):
        with atomic_write(folder / "config.yml", "w") as file:
            file.write(cfg.dump())
    log = TrainingLog(
        folder,
        start_iter=start_iter,
        max_iter=solver.MAX_ITER,
        period=solver.LOG_PERIOD,
        device=step.device,
    )
    periodic = None
    if cfg.TEST.EVAL_PERIOD:
        assert evaluation is not None
        metric = cfg.TEST.BEST_METRIC
        periodic = PeriodicEvaluation(evaluation, checkpointer, log, cfg.TEST.EVAL_PERIOD, metric)
    train(
        step,
        batches,
        checkpointer,
        log,
        num_micro_batches=solver.GRAD_ACCUM_STEPS,
        checkpoint_period=solver.CHECKPOINT_PERIOD,
        evaluation=periodic,
    )
    return None if periodic is None else periodic.final_metrics


def evaluate_detector(
    cfg: CfgNode, *, check: Check | None = None, report: Report | None = None
) -> dict[str, CocoMetrics]:
    """Evaluate a trained detector on the datasets of DATASETS.TEST.

    Args:
        cfg: the configuration; see ``load_detector`` for the weights.
        check: of each dataset, before its evaluation; None skips it.
        report: returns ``report.html`` of each dataset, if TEST.REPORT is true; None writes none.

    Returns:
        The metrics by dataset name, on the main process, of datasets with annotations.
    """
    cfg = checked(cfg)
    choose_backend(cfg.TEST.COCO_EVAL)
    device = start_run(cfg)
    start_log(cfg, device, "test_log.txt")
    weights = _read_weights(cfg)
    loaders = build_test_loaders(cfg, dist.rank(), dist.world_size())
    test_sets = _datasets(loaders)
    if check is not None:
        for each in test_sets:
            check(cfg, each)
    trained = _load(cfg, *weights, device, test_sets[0].class_names)
    logger.info("Evaluating %s", trained.source)
    dist.barrier()  # one host may download weights for longer than another waits
    return _build_evaluation(trained.cfg, trained.detector, device, loaders, report, trained.source).run()


class TrainedDetector(NamedTuple):
    """A detector in evaluation mode; ``cfg`` has its number of classes, ``source`` names its weights."""

    cfg: CfgNode
    detector: Detector
    class_names: list[str]
    source: str


def load_detector(
    cfg: CfgNode,
    weights: str | Path | None = None,
    *,
    device: torch.device | None = None,
    class_names: list[str] | None = None,
) -> TrainedDetector:
    """Build a detector and load its weights.

    Args:
        cfg: the configuration.
        weights: path or URL of a checkpoint; None takes MODEL.WEIGHT or, if that is empty or an ImageNet
            backbone, the last checkpoint of OUTPUT_DIR.
        device: receives the detector, with the memory format and compilation of MODEL; None leaves it on the
            CPU, not compiled.
        class_names: of the data, to which the classifier is matched; None takes those of the checkpoint.

    Raises:
        ValueError: if there are no weights, or they cannot be read or do not fit the configuration.
        FileNotFoundError: if there is no such file.
    """
    source, checkpoint = _read_weights(cfg) if weights is None else read_detector(weights)
    return _load(cfg, source, checkpoint, device, class_names)


def _load(
    cfg: CfgNode,
    source: str,
    checkpoint: Mapping[str, Any],
    device: torch.device | None,
    class_names: list[str] | None,
) -> TrainedDetector:
    class_names = class_names or checkpoint.get("class_names")
    if class_names:
        cfg = fill_num_classes(cfg, class_names)
    detector = build_detector(cfg)
    load_trained(detector, checkpoint, source, class_names)
    if device is not None:
        _move(detector, device, cfg.MODEL)
    if not class_names:  # old checkpoints hold none
        num_classes = detector.rpn.head.num_classes
        numbered = [f"class {i}" for i in range(1, num_classes + 1)]
        class_names = list(COCO_CLASSES) if num_classes == len(COCO_CLASSES) else numbered
    return TrainedDetector(cfg, detector.eval(), class_names, source)


def _read_weights(cfg: CfgNode) -> tuple[str, dict[str, Any]]:
    weights = cfg.MODEL.WEIGHT
    if weights and not is_imagenet_backbone(weights):
        return read_detector(weights)
    path, checkpoint = read_last_checkpoint(Path(cfg.OUTPUT_DIR))
    if path is None:
        raise ValueError(
            f"MODEL.WEIGHT: expected a trained detector, got {weights!r}, and OUTPUT_DIR {cfg.OUTPUT_DIR!r} "
            f"has no checkpoint. Set MODEL.WEIGHT to a .pth or .safetensors file or URL."
        )
    return str(path), checkpoint


def start_run(cfg: CfgNode) -> torch.device:
    """Choose the device, join the job of a launcher, log to the console, survive the terminal."""
    if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # data workers inherit that
    if cfg.DETERMINISTIC:
        env.use_deterministic_algorithms()
    device = dist.start_process_group(env.choose_device(cfg.MODEL.DEVICE))
    setup_logging()
    return device


def start_log(cfg: CfgNode, device: torch.device, log_file: str) -> None:
    """Log to ``OUTPUT_DIR/log_file`` as well, starting with the environment."""
    setup_logging(Path(cfg.OUTPUT_DIR), log_file)
    logger.info("%s; %s; %d processes", env.environment_report(device), ops_info(), dist.world_size())


def predictor_arguments(cfg: CfgNode, weights: str | Path) -> dict[str, Any]:
    """Build the arguments of ``Predictor``; raises as ``load_detector``."""
    device = env.choose_device(cfg.MODEL.DEVICE)
    cfg, detector, class_names, _ = load_detector(cfg, weights, device=device)
    return {
        "inference": build_inference(cfg, detector, device),
        "transform": build_transform(cfg, training=False),
        "collate": build_collate(cfg),
        "class_names": class_names,
        "max_pixels": pixel_limit(cfg),
        "grey_bits": grey_bits(cfg),
        "skip_unreadable": cfg.DATALOADER.SKIP_CORRUPT,
    }


def _move(detector: Detector, device: torch.device, settings: CfgNode) -> Detector:
    """Move a detector to its device, with the memory format and compilation of MODEL."""
    detector.to(device)
    if settings.CHANNELS_LAST:
        detector.to(memory_format=torch.channels_last)
    if settings.COMPILE:  # in place, so that state-dict keys stay as they are
        detector.backbone.compile(dynamic=True)
        detector.rpn.head.compile(dynamic=True)
    return detector


def _datasets(
    loaders: Sequence[DataLoader], class_names: Sequence[str] | None = None, reference: str = ""
) -> list[DetectionDataset]:
    """Return the test sets of loaders, whose classes must be those of ``reference``, or else of the first."""
    datasets = [loader.dataset for loader in loaders if isinstance(loader.dataset, DetectionDataset)]
    for dataset in datasets:
        check_same_classes(dataset, class_names or datasets[0].class_names, reference or datasets[0].name)
    return datasets


def _build_evaluation(
    cfg: CfgNode,
    detector: nn.Module,
    device: torch.device,
    loaders: Sequence[DataLoader],
    report: Report | None,
    source: str,
    *,
    is_training: bool = False,
) -> Evaluation:
    """Build the evaluation of a detector on ``device``; ``source`` names its weights in the report."""
    assert isinstance(detector, Detector)
    software = f"atss {__version__}; {env.environment_report(device)}"
    facts = {"weights": source, "software": software}
    return Evaluation(
        build_inference(cfg, detector, device),
        loaders,
        Path(cfg.OUTPUT_DIR) / "inference",
        cfg.TEST.COCO_EVAL,
        cfg.TEST.EXPECTED_RESULTS,
        cfg.TEST.EXPECTED_RESULTS_SIGMA_TOL,
        partial(report, cfg, facts) if report is not None and cfg.TEST.REPORT else None,
        is_training,
    )


def build_inference(cfg: CfgNode, detector: Detector, device: torch.device) -> Inference:
    """Build the inference pipeline of a detector on ``device``, at one scale or those of TEST.BBOX_AUG.

    Raises:
        ValueError: if the keys of TEST.BBOX_AUG do not fit together.
    """
    cfg = checked(cfg)
    if not cfg.TEST.BBOX_AUG.ENABLED:
        return SingleScale(detector, device)
    return MultiScale(
        detector=detector,
        scales=build_scales(cfg),
        merge=build_merge(cfg, detector.postprocess.nms_threshold),
        is_nms_joint=not cfg.TEST.BBOX_AUG.VOTE,
        size_divisibility=cfg.DATALOADER.SIZE_DIVISIBILITY,
        device=device,
    )


def build_scales(cfg: CfgNode) -> list[Scale]:
    """Build the scales of test-time augmentation: that of plain testing, and TEST.BBOX_AUG.SCALES.

    Raises:
        ValueError: if SCALE_RANGES are not pairs smallest < largest, one for each of SCALES.
    """
    aug = cfg.TEST.BBOX_AUG
    ranges = aug.SCALE_RANGES if aug.VOTE else ()
    if ranges and (len(ranges) != len(aug.SCALES) or not all(high > low for low, high in ranges)):
        raise ValueError(
            f"TEST.BBOX_AUG.SCALE_RANGES must be empty or have a pair 0 <= smallest < largest for each of "
            f"the {len(aug.SCALES)} sizes in SCALES, got {aug.SCALE_RANGES}"
        )
    plain = build_test_transform(cfg, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    scales = [Scale(plain, is_flipped=aug.H_FLIP)]
    for i, size in enumerate(aug.SCALES):
        max_size = cfg.INPUT.MAX_SIZE_TEST if size < PLAIN_SHORT_SIDE else aug.MAX_SIZE
        transform = build_test_transform(cfg, size, max_size)
        scales.append(Scale(transform, aug.SCALE_H_FLIP, tuple(ranges[i]) if ranges else None))
    return scales


def build_merge(cfg: CfgNode, nms_threshold: float) -> Callable[[BoxList], BoxList]:
    """Build the merge of the detections of all scales; ``nms_threshold`` is that of the post-processor."""
    aug = cfg.TEST.BBOX_AUG
    if not aug.VOTE:
        if aug.SCALE_RANGES or aug.MERGE_TYPE != "vote":
            logger.warning(
                "TEST.BBOX_AUG.MERGE_TYPE and SCALE_RANGES count only with VOTE True, as published"
            )
        return partial(nms, threshold=nms_threshold, max_detections=cfg.TEST.DETECTIONS_PER_IMG)
    # The published code caps merged detections with the key of the candidates, not DETECTIONS_PER_IMG.
    max_detections = cfg.MODEL.ATSS.PRE_NMS_TOP_N
    if aug.MERGE_TYPE == "nms":
        return partial(nms, threshold=nms_threshold, max_detections=max_detections)
    is_soft = aug.MERGE_TYPE == "soft-vote"
    return partial(vote, threshold=aug.VOTE_TH, soft=is_soft, max_detections=max_detections)
