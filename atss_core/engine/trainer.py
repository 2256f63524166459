"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from atss_core.data import Batch
from atss_core.engine.training_log import TrainingLog
from atss_core.utils import dist
from atss_core.utils.checkpoint import Checkpointer

logger = logging.getLogger(__name__)


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    checkpointer: Checkpointer,
    *,
    device: torch.device,
    start_iter: int,
    max_iter: int,
    checkpoint_period: int,
    log_period: int,
    metrics_file: Path,
) -> None:
    """Train from ``start_iter`` to ``max_iter`` and save ``model_final.pth``.

    Args:
        model: maps images and targets to a dictionary of loss terms; may be wrapped for parallel training.
        batches: exactly ``max_iter - start_iter`` batches.
        optimizer: stepped every iteration.
        scheduler: stepped every iteration, after the optimizer.
        checkpointer: saves ``model_<iteration>.pth``.
        device: where the model is.
        start_iter: iterations done before.
        max_iter: iterations in all.
        checkpoint_period: iterations between checkpoints.
        log_period: iterations between log lines.
        metrics_file: receives a JSON line every ``log_period`` iterations and at checkpoints.

    Raises:
        NonFiniteLossError: if a loss is NaN or infinite; no checkpoint is written after that iteration.
    """
    model.train()
    log = TrainingLog(
        metrics_file, start_iter=start_iter, max_iter=max_iter, period=log_period, device=device
    )
    num_skipped = 0
    bar = tqdm(
        total=max_iter,
        initial=start_iter,
        unit="it",
        desc="training",
        disable=None if dist.is_main() else True,
    )
    end = time.perf_counter()
    for iteration, batch in enumerate(batches, start=start_iter + 1):
        log.add_data_seconds(time.perf_counter() - end)
        num_skipped += report_skipped(batch, num_skipped)
        batch = batch.to(device, non_blocking=True)
        losses: dict[str, torch.Tensor] = model(batch.images, batch.targets)
        log.add(iteration, losses, batch.image_ids)

        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        lr = optimizer.param_groups[0]["lr"]
        scheduler.step()

        bar.update()
        is_saved = iteration % checkpoint_period == 0 and iteration != max_iter
        # Also at checkpoints, so that the lines of a resumed run are those of an uninterrupted one.
        if log.is_due(iteration) or is_saved:
            log.write(iteration, lr)
            bar.set_postfix_str(log.summary())
        if is_saved:
            checkpointer.save(f"model_{iteration:07d}", iteration)
        end = time.perf_counter()
    bar.close()
    checkpointer.save("model_final", max_iter)


def report_skipped(batch: Batch, num_before: int) -> int:
    """Log the pictures of a batch that could not be read, with their count so far; returns how many."""
    for number, message in enumerate(batch.skipped, start=num_before + 1):
        logger.warning("Skipped picture %d: %s", number, message)
    return len(batch.skipped)
