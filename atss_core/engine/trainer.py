"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from atss_core.checkpoint.checkpointer import Checkpointer, set_iteration
from atss_core.data import Batch
from atss_core.engine.elastic import TerminatedError, Termination
from atss_core.engine.periodic_evaluation import PeriodicTest
from atss_core.engine.step import TrainingStep
from atss_core.engine.training_log import Board, TrainingLog
from atss_core.utils import dist

logger = logging.getLogger(__name__)

STOPPED = "stopped by SIGTERM after iteration {}; the same command goes on from there"


def train(
    step: TrainingStep,
    batches: Iterable[Batch],
    scheduler: LambdaLR,
    checkpointer: Checkpointer,
    *,
    num_parts: int = 1,
    start_iter: int,
    max_iter: int,
    checkpoint_period: int,
    log_period: int,
    metrics_file: Path,
    board: Board | None = None,
    periodic_evaluation: PeriodicTest | None = None,
) -> None:
    """Train from ``start_iter`` to ``max_iter`` and save ``model_final.pth``.

    Args:
        step: updates the weights.
        batches: exactly ``num_parts`` for each iteration.
        scheduler: moved on every iteration, after the weights.
        checkpointer: saves ``model_<iteration>.pth``.
        num_parts: batches that make up an iteration.
        start_iter: iterations done before.
        max_iter: iterations in all.
        checkpoint_period: iterations between checkpoints.
        log_period: iterations between log lines.
        metrics_file: receives a JSON line every ``log_period`` iterations and at checkpoints.
        board: receives the same numbers.
        periodic_evaluation: tests in between, each time right after a checkpoint.

    Raises:
        NonFiniteLossError: if a loss is NaN or infinite; no checkpoint is written after that iteration.
        TerminatedError: after SIGTERM, when the state is saved.
    """
    log = TrainingLog(
        metrics_file,
        start_iter=start_iter,
        max_iter=max_iter,
        period=log_period,
        device=step.device,
        board=board,
    )
    num_skipped = 0
    bar = tqdm(
        total=max_iter,
        initial=start_iter,
        unit="it",
        desc="training",
        disable=None if dist.is_main() else True,
    )
    iterations = zip(*[iter(batches)] * num_parts, strict=True)  # num_parts batches each
    with bar, Termination() as termination:

        def test_if_due(iteration: int) -> None:
            """Test if it is time, and leave the model in training mode in any case."""
            if periodic_evaluation is not None and periodic_evaluation.is_due(iteration):
                with termination.at_once(STOPPED.format(iteration)):
                    periodic_evaluation(iteration)
            step.model.train()

        test_if_due(start_iter)  # the run may have been stopped before that test
        log.restart_clock()
        bar.unpause()
        end = time.perf_counter()
        for iteration, loaded in enumerate(iterations, start=start_iter + 1):
            log.add_data_seconds(time.perf_counter() - end)
            for part in loaded:
                num_skipped += report_skipped(part, num_skipped)
            losses = step([part.to(step.device, non_blocking=True) for part in loaded])
            log.add(iteration, losses, [i for part in loaded for i in part.image_ids])
            lr = step.optimizer.param_groups[0]["lr"]
            set_iteration(scheduler, iteration)

            bar.update()
            is_last = iteration == max_iter
            is_terminated = termination.is_due(is_last)
            is_tested = periodic_evaluation is not None and periodic_evaluation.is_due(iteration)
            is_saved = is_last or is_terminated or is_tested or iteration % checkpoint_period == 0
            # Also at checkpoints, so that the lines of a resumed run are those of an uninterrupted one.
            if log.is_due(iteration) or is_saved:
                log.write(iteration, lr)
                bar.set_postfix_str(log.summary())
            if is_saved:
                checkpointer.save("model_final" if is_last else f"model_{iteration:07d}", iteration)
            if is_terminated:
                raise TerminatedError(STOPPED.format(iteration))
            test_if_due(iteration)
            if is_saved:  # times and the estimated end are those of iterations alone
                log.restart_clock()
                bar.unpause()
            end = time.perf_counter()


def report_skipped(batch: Batch, num_before: int) -> int:
    """Log the images of a batch that could not be read, with their count so far; returns how many."""
    for number, message in enumerate(batch.skipped, start=num_before + 1):
        logger.warning("Skipped image %d: %s", number, message)
    return len(batch.skipped)
