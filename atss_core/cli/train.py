"""Train a detector, resuming where an earlier run of the same folder stopped, and test it."""

from __future__ import annotations

import inspect
import logging
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from yacs.config import CfgNode

from atss_core.apps.check.checks import quick_defects, refuse_fatal
from atss_core.checkpoint.checkpointer import Checkpointer
from atss_core.checkpoint.weights import load_initial_weights
from atss_core.cli.common import (
    add_config_arguments,
    add_launcher_argument,
    load_config,
    start,
    start_log,
)
from atss_core.cli.evaluate import test_detector
from atss_core.cli.parser import CommandParser
from atss_core.config import checked
from atss_core.data import (
    ConcatDetectionDataset,
    DetectionDataset,
    build_pixel_format,
    build_test_loaders,
    build_train_dataset,
    build_train_loader,
    check_same_classes,
    fill_num_classes,
)
from atss_core.engine import TrainingStep, train
from atss_core.engine.build import move_detector
from atss_core.engine.periodic_evaluation import PeriodicTest
from atss_core.engine.tensorboard import Board
from atss_core.evaluation import choose_backend
from atss_core.modeling import Detector, build_detector
from atss_core.solver import build_ema, build_optimizer, build_scheduler
from atss_core.utils import dist
from atss_core.utils.env import seed_everything
from atss_core.utils.files import atomic_write, refuse_overwriting
from atss_core.utils.lock import lock_folder

logger = logging.getLogger(__name__)

# SOLVER.AMP -> the type that convolutions run in.
PRECISIONS = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

EXAMPLE = """
atss train --config-file atss_R_50_FPN_1x \\
    DATALOADER.NUM_WORKERS 2 OUTPUT_DIR training_dir/atss_R_50_FPN_1x
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
    parser = CommandParser("atss train", __doc__, EXAMPLE)
    add_launcher_argument(parser)
    parser.add_argument("--skip-test", action="store_true", help="do not test the final model")
    add_config_arguments(parser)
    arguments = parser.parse_args(argv)
    cfg = load_config(arguments)
    trained = train_detector(cfg, will_test=not arguments.skip_test)
    if not arguments.skip_test and not trained.is_tested:
        test_detector(trained.cfg, trained.detector, trained.device, is_final=True)
    if dist.is_main():
        logger.info(next_steps(Path(cfg.OUTPUT_DIR)))


def next_steps(folder: Path) -> str:
    """Return the commands that use what a training has left in its folder."""
    config, weights = (shlex.quote(str(folder / name)) for name in ("config.yml", "model_final.pth"))
    commands = {
        "measure": f"atss test --config-file {config} MODEL.WEIGHT {weights}",
        "draw": f"atss demo --config-file {config} --weights {weights} --images-dir IMAGES",
        "curves": f"atss plot {shlex.quote(str(folder))}",
        "export": f"atss export --config-file {config} --weights {weights} --format onnx",
    }
    return "\n".join(["What to do with it:", *(f"  {f'{name}:':<9} {c}" for name, c in commands.items())])


class Trained(NamedTuple):
    """What training leaves.

    Attributes:
        detector: with the weights that are tested: the average, if there is one.
        device: where it is.
        is_tested: whether TEST.EVAL_PERIOD has made training test it.
        cfg: the configuration with the number of classes.
    """

    detector: Detector
    device: torch.device
    is_tested: bool
    cfg: CfgNode


def train_detector(cfg: CfgNode, will_test: bool = True) -> Trained:
    """Train as configured.

    Args:
        cfg: the configuration.
        will_test: the test sets are checked as well before training starts.

    Raises:
        ValueError: if settings or data are faulty, or another run writes to OUTPUT_DIR.
        TerminatedError: after SIGTERM, when the state is saved.
    """
    cfg = checked(cfg)
    choose_backend(cfg.TEST.COCO_EVAL)
    device = start(cfg)
    with lock_folder(Path(cfg.OUTPUT_DIR)) if dist.is_main() else nullcontext():
        start_log(cfg, device, "log.txt")  # that of another run stays as it is
        return _train(cfg, device, will_test)


def _train(cfg: CfgNode, device: torch.device, will_test: bool) -> Trained:
    """Train in a locked folder, whose files stay as they are until the run is known to go on."""
    dataset = build_train_dataset(cfg)
    cfg = fill_num_classes(cfg, dataset.class_names)
    test_sets = check_data(cfg, dataset, tested=will_test or cfg.TEST.EVAL_PERIOD > 0)
    folder = Path(cfg.OUTPUT_DIR)
    seed_everything(cfg.SEED)
    detector = move_detector(cfg, build_detector(cfg), device)
    optimizer = build_optimizer(cfg, detector)
    scheduler = build_scheduler(cfg, optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.SOLVER.AMP == "float16")
    average = build_ema(cfg, detector)
    checkpointer = Checkpointer(
        folder, detector, optimizer, scheduler, dataset.class_names, scaler=scaler, ema=average
    )
    start_iter = checkpointer.resume()
    if start_iter is None:
        start_iter = 0
        refuse_overwriting(
            [folder / "model_best.pth", folder / "model_final.pth"],
            [cfg.MODEL.WEIGHT] if cfg.MODEL.WEIGHT else [],
            "Set OUTPUT_DIR to another folder.",
        )
        load_initial_weights(
            detector,
            cfg.MODEL.WEIGHT,
            partial=cfg.MODEL.WEIGHT_PARTIAL,
            pixels=build_pixel_format(cfg),
            class_names=dataset.class_names,
        )
    dist.barrier()  # one host may download weights for longer than another waits
    is_trained = start_iter >= cfg.SOLVER.MAX_ITER
    if not is_trained:  # these may still refuse the settings
        step = TrainingStep(
            detector,
            parallel(detector, device, cfg.MODEL.USE_SYNCBN),
            optimizer,
            scaler,
            device=device,
            amp=PRECISIONS[cfg.SOLVER.AMP],
            max_grad_norm=cfg.SOLVER.CLIP_GRAD_NORM,
            average=average,
        )
        loader = build_train_loader(
            cfg, dataset, start_iter=start_iter, rank=dist.rank(), world_size=dist.world_size()
        )
    if dist.is_main() and not (is_trained and (folder / "config.yml").is_file()):
        with atomic_write(folder / "config.yml", "w") as file:
            file.write(cfg.dump())
    board = Board(folder / "tensorboard", start_iter)
    tested = checkpointer.eval_model
    assert isinstance(tested, Detector)
    periodic_evaluation = None
    if cfg.TEST.EVAL_PERIOD:
        periodic_evaluation = PeriodicTest(
            lambda iteration: test_detector(
                cfg, tested, device, is_final=iteration == cfg.SOLVER.MAX_ITER, test_sets=test_sets
            ),
            checkpointer,
            folder / "evaluations.jsonl",
            start_iter=start_iter,
            max_iter=cfg.SOLVER.MAX_ITER,
            period=cfg.TEST.EVAL_PERIOD,
            best_metric=cfg.TEST.BEST_METRIC,
            board=board,
        )
    if is_trained:
        logger.info("%s is trained already (%d iterations); remove it to train anew", folder, start_iter)
        is_due = periodic_evaluation is not None and periodic_evaluation.is_due(start_iter)
        if periodic_evaluation is not None and is_due:
            periodic_evaluation(start_iter)
        return Trained(tested, device, is_due, cfg)

    train(
        step,
        loader,
        scheduler,
        checkpointer,
        num_parts=cfg.SOLVER.GRAD_ACCUM_STEPS,
        start_iter=start_iter,
        max_iter=cfg.SOLVER.MAX_ITER,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        log_period=cfg.SOLVER.LOG_PERIOD,
        metrics_file=folder / "metrics.jsonl",
        board=board,
        periodic_evaluation=periodic_evaluation,
    )
    return Trained(tested, device, periodic_evaluation is not None, cfg)


def check_data(cfg: CfgNode, dataset: ConcatDetectionDataset, tested: bool) -> list[DetectionDataset]:
    """Find what is wrong with the data before hours of training; small defects are logged.

    Args:
        cfg: the configuration.
        dataset: the training set.
        tested: whether the test sets will be needed.

    Returns:
        The test sets, if they are needed.

    Raises:
        ValueError: if the data cannot be trained or tested on, or TEST.EVAL_PERIOD has nothing to choose the
            best by.
    """
    test_sets = test_sets_of(cfg) if tested else []
    for test_set in test_sets:
        check_same_classes(test_set, dataset.class_names, f"the training set {dataset.name}")
    if cfg.TEST.EVAL_PERIOD and not test_sets[0].has_annotations:
        raise ValueError(
            f"TEST.EVAL_PERIOD needs annotations to choose the best checkpoint by, but {test_sets[0].name} "
            f"in DATASETS.TEST has none; set it to 0 or put a data set with annotations first"
        )
    for each in (*dataset.datasets, *test_sets):
        defects = quick_defects(cfg, each)
        refuse_fatal(each.name, defects, skip_corrupt=cfg.DATALOADER.SKIP_CORRUPT)
        for defect in defects:
            logger.warning("%s: %s", each.name, defect.message)
    return test_sets


def test_sets_of(cfg: CfgNode) -> list[DetectionDataset]:
    """Open the data sets of DATASETS.TEST, through their loaders, which check the settings of testing."""
    loaders = build_test_loaders(cfg, rank=dist.rank(), world_size=dist.world_size())
    return [loader.dataset for loader in loaders if isinstance(loader.dataset, DetectionDataset)]


def parallel(detector: Detector, device: torch.device, sync_batch_norm: bool) -> nn.Module:
    """Wrap the detector for training in several processes; alone it stays as it is."""
    if dist.world_size() == 1:
        return detector
    if sync_batch_norm and device.type != "cuda":
        raise ValueError(f"MODEL.USE_SYNCBN needs CUDA devices, but this runs on {device}; set it to False")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(detector) if sync_batch_norm else detector
    if sync_batch_norm:
        count = sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        logger.info("MODEL.USE_SYNCBN synchronises %d batch norms (fixed ones have nothing to share)", count)
    device_ids = [device.index] if device.type == "cuda" else None
    # Batch norms that are not synchronised keep their own statistics between checkpoints, as published.
    # PyTorch 2.15 has renamed this switch and warns about its old name.
    names = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {switch: False}
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids, **options)
