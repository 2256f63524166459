"""The log of a training run: console lines, metrics.jsonl, TensorBoard, and the check for finite losses."""

from __future__ import annotations

import datetime
import importlib
import io
import logging
import math
import os
import socket
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atss_core.utils import dist
from atss_core.utils.env import peak_memory
from atss_core.utils.extras import has
from atss_core.utils.files import append, append_json, auxiliary, keep_lines

logger = logging.getLogger(__name__)

# Iterations over which the console shows the median; the mean of the whole run stands behind it.
WINDOW = 20


class NonFiniteLossError(ArithmeticError):
    """A loss term is NaN or infinite."""


class TrainingLog:
    """Collect losses on the device and fetch them only at log steps, so that training does not wait.

    Args:
        folder: receives ``metrics.jsonl``, a JSON line per log step, and curves for TensorBoard. Lines after
            ``start_iter`` (of a run that was killed later than its last checkpoint) are dropped.
        start_iter: iterations done before.
        max_iter: iterations in all.
        period: iterations between log steps.
        device: of the losses. On the CPU each iteration is checked at once, which costs nothing there.
    """

    def __init__(
        self, folder: Path, *, start_iter: int, max_iter: int, period: int, device: torch.device
    ) -> None:
        self.metrics_file = folder / "metrics.jsonl"
        self.start_iter = start_iter
        self.max_iter = max_iter
        self.period = period
        self.device = device
        self.board = Board(folder / "tensorboard", start_iter)
        self._pending: list[tuple[int, Tensor, list[int]]] = []
        self._names: list[str] = []
        self._since_line: dict[str, list[float]] = defaultdict(list)
        self._recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._totals: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._clock, self._last_line = time.perf_counter(), start_iter
        if dist.is_main():
            keep_lines(self.metrics_file, start_iter)

    def add(self, iteration: int, losses: dict[str, Tensor], image_ids: list[int]) -> None:
        """Add the loss terms of an iteration, scalars on the device, and the images they come from."""
        self._names = list(losses)
        self._pending.append((iteration, torch.stack([loss.detach() for loss in losses.values()]), image_ids))
        if self.device.type == "cpu":
            self.check()

    def add_data_seconds(self, seconds: float) -> None:
        """Add the seconds that an iteration waited for data."""
        self._record("data", seconds)

    def check(self) -> None:
        """Fetch the pending losses and raise if one is not finite.

        Raises:
            NonFiniteLossError: naming the first such iteration, its loss terms and its images.
        """
        if not self._pending:
            return
        values = dist.mean_over_processes(torch.stack([losses for _, losses, _ in self._pending])).tolist()
        pending, self._pending = self._pending, []
        for (iteration, own, image_ids), terms in zip(pending, values, strict=True):
            losses = dict(zip(self._names, terms, strict=True))
            if not all(map(math.isfinite, terms)):
                listed = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
                raise NonFiniteLossError(
                    f"the loss is not finite at iteration {iteration}: {listed}; "
                    f"{_suspects(own, image_ids)}. Nothing was saved since the last checkpoint. Look at "
                    f"these images, lower SOLVER.BASE_LR or, with SOLVER.AMP float16, take bfloat16"
                )
            for name, value in {"loss": sum(terms), **losses}.items():
                self._record(name, value)

    def is_due(self, iteration: int) -> bool:
        """Return whether a line is written after this iteration."""
        return iteration % self.period == 0 or iteration == self.max_iter

    def write(self, iteration: int, lr: float) -> None:
        """Write a line to the console, the metrics file and TensorBoard."""
        self.check()  # after this the device has caught up, so the clock counts its work as well
        now = time.perf_counter()
        num_iterations = iteration - self._last_line
        for _ in range(num_iterations):
            self._record("time", (now - self._clock) / num_iterations)
        self._clock, self._last_line = now, iteration
        if dist.is_main():
            eta = self._mean("time") * (self.max_iter - iteration)
            memory = peak_memory(self.device)
            self._write_console(iteration, lr, eta, memory)
            self._write_metrics(iteration, lr, eta, memory)
        self._since_line.clear()

    def restart_clock(self) -> None:
        """Exclude a checkpoint or an evaluation since the last line from the time of the next one."""
        self._clock = time.perf_counter()

    def summary(self) -> str:
        """Return the current loss for the progress bar."""
        return f"loss {statistics.median(self._recent['loss']):.3f}" if self._recent["loss"] else ""

    def _record(self, name: str, value: float) -> None:
        self._since_line[name].append(value)
        self._recent[name].append(value)
        self._totals[name] += value
        self._counts[name] += 1

    def _mean(self, name: str) -> float:
        return self._totals[name] / max(self._counts[name], 1)

    def _write_console(self, iteration: int, lr: float, eta: float, memory: float | None) -> None:
        columns = [f"eta {datetime.timedelta(seconds=int(eta))}", f"iter {iteration}/{self.max_iter}"]
        for name in ["loss", *self._names, "time", "data"]:
            columns.append(f"{name} {statistics.median(self._recent[name]):.4f} ({self._mean(name):.4f})")
        columns.append(f"lr {lr:.6f}")
        if memory is not None:
            columns.append(f"max mem {memory:.0f} MiB")
        logger.info("  ".join(columns))

    def _write_metrics(self, iteration: int, lr: float, eta: float, memory: float | None) -> None:
        means = {name: statistics.fmean(values) for name, values in self._since_line.items()}
        self.board.add(iteration, "training", {"lr": lr, **means})
        end = {"eta_seconds": eta, "max_memory_mib": memory, "wall_time": time.time()}
        append_json(self.metrics_file, {"iteration": iteration, "lr": lr, **means, **end})


def _suspects(own: Tensor, image_ids: list[int]) -> str:
    """Name the images of the processes whose own losses (terms,) are not finite; a collective call."""
    is_bad = not bool(own.isfinite().all())
    rows = torch.tensor([(image_id, is_bad) for image_id in image_ids], dtype=torch.int64).reshape(-1, 2)
    images = torch.cat(dist.gather(rows) or [rows[:0]])
    if not dist.is_main():
        return "the main process names the images"
    bad = images[images[:, 1] == 1]  # none if finite terms add up to infinity
    return f"images {(bad if len(bad) else images)[:, 0].tolist()}"


class Board:
    """Write curves for TensorBoard on the main process, if it is installed.

    A file that cannot be written is a warning. PyTorch's SummaryWriter has a thread that dies of a full disk
    with a traceback.

    Args:
        folder: of the event files.
        start_iter: iterations done before; TensorBoard hides what an earlier run wrote of later ones.
    """

    def __init__(self, folder: Path, start_iter: int) -> None:
        self._modules: tuple[Any, ...] = ()
        if not dist.is_main() or not has("tensorboard"):
            return
        try:
            names = ("compat.proto.event_pb2", "summary.writer.record_writer")
            proto, writer = (importlib.import_module(f"tensorboard.{name}") for name in names)
            self._modules = (proto, writer, importlib.import_module("torch.utils.tensorboard.summary"))
        except Exception as error:  # protobuf of another version raises TypeError
            logger.warning("TensorBoard cannot be imported and gets no curves: %r", error)
            return
        self._file = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        with auxiliary(self._file):
            folder.mkdir(parents=True, exist_ok=True)
        start = proto.SessionLog(status=proto.SessionLog.START)
        self._write({"file_version": "brain.Event:2"}, {"step": start_iter + 1, "session_log": start})
        logger.info("tensorboard --logdir %s shows the curves", folder)

    def add(self, iteration: int, section: str, values: Mapping[str, float | None]) -> None:
        """Write numbers of an iteration as ``section/name``."""
        if self._modules:
            scalar = self._modules[2].scalar
            numbers = {f"{section}/{name}": value for name, value in values.items() if value is not None}
            self._write(*({"step": iteration, "summary": scalar(*number)} for number in numbers.items()))

    def _write(self, *events: Mapping[str, Any]) -> None:
        proto, writer, _ = self._modules
        content = io.BytesIO()
        for event in events:
            record = proto.Event(wall_time=time.time(), **event)
            writer.RecordWriter(content).write(record.SerializeToString())
        append(self._file, content.getvalue())
