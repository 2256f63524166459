"""Train a detector, resuming where an earlier run of the same folder stopped, and test it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from atss_core.cli.common import add_config_arguments, add_launcher_argument, load_config, start
from atss_core.cli.test import test_detector
from atss_core.data import build_test_loaders, build_train_dataset, build_train_loader
from atss_core.engine import train
from atss_core.modeling import Detector, build_detector
from atss_core.solver import build_optimizer, build_scheduler
from atss_core.utils import dist
from atss_core.utils.checkpoint import Checkpointer
from atss_core.utils.env import seed_everything
from atss_core.utils.files import atomic_write
from atss_core.utils.weights import load_initial_weights

logger = logging.getLogger(__name__)

EXAMPLE = """example:
  python tools/train_net.py --config-file configs/atss/atss_R_50_FPN_1x.yaml \\
      DATALOADER.NUM_WORKERS 2 OUTPUT_DIR training_dir/atss_R_50_FPN_1x"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_launcher_argument(parser)
    parser.add_argument("--skip-test", action="store_true", help="do not test the final model")
    add_config_arguments(parser)
    arguments = parser.parse_args(argv)
    cfg = load_config(arguments)
    detector, device = train_detector(cfg, will_test=not arguments.skip_test)
    if not arguments.skip_test:
        test_detector(cfg, detector, device)


def check_settings(cfg: CfgNode) -> None:
    """Refuse numbers that training cannot work with.

    Raises:
        ValueError: naming the key.
    """
    for key in ("MAX_ITER", "CHECKPOINT_PERIOD", "LOG_PERIOD"):
        if cfg.SOLVER[key] < 1:
            raise ValueError(f"SOLVER.{key} must be at least 1, got {cfg.SOLVER[key]}")


def train_detector(cfg: CfgNode, will_test: bool = True) -> tuple[Detector, torch.device]:
    """Train as configured.

    Args:
        cfg: the configuration.
        will_test: the test sets are checked as well before training starts.

    Returns:
        The trained detector and its device.
    """
    check_settings(cfg)
    device = start(cfg, "log.txt")
    folder = Path(cfg.OUTPUT_DIR)
    if dist.is_main():
        with atomic_write(folder / "config.yml", "w") as file:
            file.write(cfg.dump())

    dataset = build_train_dataset(cfg)
    if will_test:
        build_test_loaders(cfg, rank=dist.rank(), world_size=dist.world_size())
    seed_everything(cfg.SEED)
    detector = build_detector(cfg).to(device)
    optimizer = build_optimizer(cfg, detector)
    scheduler = build_scheduler(cfg, optimizer)
    checkpointer = Checkpointer(folder, detector, optimizer, scheduler, dataset.class_names)
    start_iter = checkpointer.resume()
    if start_iter is None:
        start_iter = 0
        load_initial_weights(detector, cfg.MODEL.WEIGHT)
    if start_iter >= cfg.SOLVER.MAX_ITER:
        logger.info("%s is trained already (%d iterations); remove it to train anew", folder, start_iter)
        return detector, device

    train(
        parallel(detector, device, cfg.MODEL.USE_SYNCBN),
        build_train_loader(
            cfg, dataset, start_iter=start_iter, rank=dist.rank(), world_size=dist.world_size()
        ),
        optimizer,
        scheduler,
        checkpointer,
        device=device,
        start_iter=start_iter,
        max_iter=cfg.SOLVER.MAX_ITER,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        log_period=cfg.SOLVER.LOG_PERIOD,
        metrics_file=folder / "metrics.jsonl",
    )
    return detector, device


def parallel(detector: Detector, device: torch.device, sync_batch_norm: bool) -> nn.Module:
    """Wrap the detector for training in several processes; alone it stays as it is."""
    if dist.world_size() == 1:
        return detector
    if sync_batch_norm and device.type != "cuda":
        raise ValueError(f"MODEL.USE_SYNCBN needs CUDA devices, but this runs on {device}; set it to False")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(detector) if sync_batch_norm else detector
    device_ids = [device.index] if device.type == "cuda" else None
    # Batch norms that are not synchronised keep their own statistics between checkpoints, as published.
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
