"""The training loop."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from atss_core.checkpoint.checkpointer import Checkpointer, set_iteration
from atss_core.data import Batch
from atss_core.engine.elastic import TerminatedError, Termination
from atss_core.engine.evaluate import PeriodicEvaluation
from atss_core.engine.inference import log_skipped
from atss_core.engine.step import TrainingStep
from atss_core.engine.training_log import TrainingLog
from atss_core.modeling import Detector
from atss_core.utils import dist

logger = logging.getLogger(__name__)

STOPPED = "stopped by SIGTERM after iteration {}; the same command resumes there"


def train(
    step: TrainingStep,
    batches: Iterable[Batch],
    checkpointer: Checkpointer,
    log: TrainingLog,
    *,
    num_micro_batches: int = 1,
    checkpoint_period: int,
    evaluation: PeriodicEvaluation | None = None,
) -> None:
    """Train from ``log.start_iter`` to ``log.max_iter`` and save ``model_final.pth``.

    Args:
        step: updates the weights.
        batches: exactly ``num_micro_batches`` per iteration.
        checkpointer: saves ``model_<iteration>.pth``; its scheduler moves on every iteration.
        log: receives the losses, and writes a line at each checkpoint as well.
        num_micro_batches: batches that make up an iteration.
        checkpoint_period: iterations between checkpoints.
        evaluation: evaluates in between, each time right after a checkpoint.

    Raises:
        NonFiniteLossError: if a loss is NaN or infinite; no checkpoint is written after that iteration.
        TerminatedError: after SIGTERM, when the state is saved.
    """
    start_iter, max_iter, num_skipped = log.start_iter, log.max_iter, 0
    iterations = zip(*[iter(batches)] * num_micro_batches, strict=True)
    hidden = None if dist.is_main() else True  # None shows the bar on a terminal
    bar = tqdm(total=max_iter, initial=start_iter, unit="it", desc="training", disable=hidden)
    with bar, Termination() as termination:

        def evaluate_if_due(iteration: int) -> None:
            if evaluation is not None and evaluation.is_due(iteration):
                with termination.at_once(STOPPED.format(iteration)):
                    evaluation(iteration)
            step.model.train()

        evaluate_if_due(start_iter)  # the run may have been stopped before that evaluation
        log.restart_clock()
        bar.unpause()
        end = time.perf_counter()
        for iteration, micro_batches in enumerate(iterations, start=start_iter + 1):
            log.add_data_seconds(time.perf_counter() - end)
            for batch in micro_batches:
                num_skipped = log_skipped(batch, num_skipped)
            losses = step([batch.to(step.device, non_blocking=True) for batch in micro_batches])
            log.add(iteration, losses, [i for batch in micro_batches for i in batch.image_ids])
            lr = step.optimizer.param_groups[0]["lr"]
            set_iteration(checkpointer.scheduler, iteration)

            bar.update()
            is_last = iteration == max_iter
            is_terminated = termination.is_due(is_last)
            is_evaluated = evaluation is not None and evaluation.is_due(iteration)
            is_saved = is_last or is_terminated or is_evaluated or iteration % checkpoint_period == 0
            # Also at checkpoints, so that the lines of a resumed run are those of an uninterrupted one.
            if log.is_due(iteration) or is_saved:
                log.write(iteration, lr)
                bar.set_postfix_str(log.summary())
            if is_saved:
                checkpointer.save("model_final" if is_last else f"model_{iteration:07d}", iteration)
            if is_terminated:
                raise TerminatedError(STOPPED.format(iteration))
            evaluate_if_due(iteration)
            if is_saved:  # times and the estimated end are those of iterations alone
                log.restart_clock()
                bar.unpause()
            end = time.perf_counter()


def parallelize(detector: Detector, device: torch.device, *, sync_batch_norm: bool) -> nn.Module:
    """Wrap the detector for training in several processes; in a single one it stays as it is."""
    if dist.world_size() == 1:
        return detector
    model: nn.Module = detector
    if sync_batch_norm:
        if device.type != "cuda":
            raise ValueError(
                f"MODEL.USE_SYNCBN needs CUDA devices, but this runs on {device}; set it to False"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(detector)
        count = sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        logger.info("MODEL.USE_SYNCBN synchronises %d batch norms (fixed ones have nothing to share)", count)
    # Batch norms that are not synchronised keep their own statistics between checkpoints, as published.
    # PyTorch 2.15 has renamed this switch and warns about its old name.
    names = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {switch: False}
    device_ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids, **options)
