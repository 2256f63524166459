"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from atss_core.data import Batch
from atss_core.engine.step import TrainingStep
from atss_core.engine.termination import TerminatedError, Termination
from atss_core.engine.training_log import TrainingLog
from atss_core.utils import dist
from atss_core.utils.checkpoint import Checkpointer

logger = logging.getLogger(__name__)


def train(
    step: TrainingStep,
    batches: Iterable[Batch],
    scheduler: LRScheduler,
    checkpointer: Checkpointer,
    *,
    num_parts: int = 1,
    start_iter: int,
    max_iter: int,
    checkpoint_period: int,
    log_period: int,
    metrics_file: Path,
    evaluate: Callable[[int], float] | None = None,
    eval_period: int = 0,
) -> None:
    """Train from ``start_iter`` to ``max_iter`` and save ``model_final.pth``.

    Args:
        step: updates the weights.
        batches: exactly ``num_parts`` for each iteration.
        scheduler: stepped every iteration, after the weights.
        checkpointer: saves ``model_<iteration>.pth``.
        num_parts: batches that make up an iteration.
        start_iter: iterations done before.
        max_iter: iterations in all.
        checkpoint_period: iterations between checkpoints.
        log_period: iterations between log lines.
        metrics_file: receives a JSON line every ``log_period`` iterations and at checkpoints.
        evaluate: called with the iteration every ``eval_period`` iterations and after the last one; returns
            what ``model_best.pth`` is the best by. Only the main process's value counts.
        eval_period: see ``evaluate``.

    Raises:
        NonFiniteLossError: if a loss is NaN or infinite; no checkpoint is written after that iteration.
        TerminatedError: after SIGTERM, when the state is saved.
    """
    step.model.train()
    log = TrainingLog(
        metrics_file, start_iter=start_iter, max_iter=max_iter, period=log_period, device=step.device
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
    iterations = zip(*[iter(batches)] * num_parts, strict=True)  # num_parts batches each
    with bar, Termination() as termination:
        for iteration, loaded in enumerate(iterations, start=start_iter + 1):
            log.add_data_seconds(time.perf_counter() - end)
            for part in loaded:
                num_skipped += report_skipped(part, num_skipped)
            losses = step([part.to(step.device, non_blocking=True) for part in loaded])
            log.add(iteration, losses, [i for part in loaded for i in part.image_ids])
            lr = step.optimizer.param_groups[0]["lr"]
            scheduler.step()

            bar.update()
            is_last = iteration == max_iter
            is_terminated = not is_last and termination.is_due()
            is_saved = is_terminated or (iteration % checkpoint_period == 0 and not is_last)
            # Also at checkpoints, so that the lines of a resumed run are those of an uninterrupted one.
            if log.is_due(iteration) or is_saved:
                log.write(iteration, lr)
                bar.set_postfix_str(log.summary())
            # Not after SIGTERM, when there may be only seconds left to save.
            if evaluate and (iteration % eval_period == 0 or is_last) and not is_terminated:
                log.check()
                checkpointer.save_best(evaluate(iteration), iteration)
                step.model.train()
            if is_saved:
                checkpointer.save(f"model_{iteration:07d}", iteration)
            if is_terminated:
                raise TerminatedError(
                    f"stopped by SIGTERM after iteration {iteration}; the same command goes on from there"
                )
            end = time.perf_counter()
        checkpointer.save("model_final", max_iter)
        if termination.is_due():
            raise TerminatedError(
                "stopped by SIGTERM after training had ended; the same command tests the model"
            )


def report_skipped(batch: Batch, num_before: int) -> int:
    """Log the pictures of a batch that could not be read, with their count so far; returns how many."""
    for number, message in enumerate(batch.skipped, start=num_before + 1):
        logger.warning("Skipped picture %d: %s", number, message)
    return len(batch.skipped)
