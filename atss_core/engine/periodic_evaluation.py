"""Tests during training, and the choice of the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atss_core.checkpoint.checkpointer import Checkpointer
from atss_core.engine.training_log import Board
from atss_core.evaluation import CocoMetrics
from atss_core.utils import dist
from atss_core.utils.files import append_json, keep_lines, on_main_process, read_records


class PeriodicTest:
    """Test every so many iterations and after the last one, and keep the best weights.

    Each test is a line of metrics in a file, which also tells a resumed run what has been tested and what was
    the best until then.

    Args:
        test: tests the current weights, after an iteration; returns metrics by data set name on the main
            process.
        checkpointer: saves ``model_best.pth``.
        file: JSON lines, one a test and data set; lines after ``start_iter`` are dropped.
        start_iter: iterations done before.
        max_iter: iterations in all.
        period: iterations between tests.
        best_metric: of the first data set, chooses the best.
        board: receives the metrics as well.
    """

    def __init__(
        self,
        test: Callable[[int], dict[str, CocoMetrics]],
        checkpointer: Checkpointer,
        file: Path,
        *,
        start_iter: int,
        max_iter: int,
        period: int,
        best_metric: str,
        board: Board | None = None,
    ) -> None:
        self.test = test
        self.checkpointer = checkpointer
        self.file = file
        self.max_iter = max_iter
        self.period = period
        self.best_metric = best_metric
        self.board = board
        on_main_process(lambda: keep_lines(file, start_iter))
        tests = [
            line for line in read_records(file, start_iter) if isinstance(line.get(best_metric), int | float)
        ]
        self._tested = {line["iteration"] for line in tests}
        # The first line of an iteration is that of the first data set.
        firsts = {line["iteration"]: line[best_metric] for line in reversed(tests)}
        self.best: float = max(firsts.values(), default=-1.0)

    def is_due(self, iteration: int) -> bool:
        """Tell whether to test after this iteration, which all processes answer alike."""
        is_due = iteration > 0 and iteration % self.period == 0
        return (is_due or iteration == self.max_iter) and iteration not in self._tested

    def __call__(self, iteration: int) -> None:
        """Test, log the metrics and save the weights if they are the best so far."""
        self.checkpointer.share_buffers()
        metrics = self.test(iteration)
        self._tested.add(iteration)
        if dist.is_main():
            value = next(iter(metrics.values())).overall[self.best_metric]
            if value > self.best or not (self.checkpointer.folder / "model_best.pth").is_file():
                self.best = max(value, self.best)
                self.checkpointer.save_best(iteration, value)
            for name, found in metrics.items():
                append_json(self.file, {"iteration": iteration, "dataset": name, **found.overall})
                if self.board is not None:
                    self.board.add(iteration, name, found.overall)
        dist.barrier()
