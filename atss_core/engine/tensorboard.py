"""Curves for TensorBoard, where it is installed."""

from __future__ import annotations

import importlib
import io
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atss_core.utils import dist
from atss_core.utils.extras import has
from atss_core.utils.files import append, auxiliary

logger = logging.getLogger(__name__)


class Board:
    """Write numbers of a training for TensorBoard.

    Nothing is written where it is not installed, and on other processes than the main one. A file that cannot
    be written is a warning; PyTorch's SummaryWriter has a thread that dies of a full disk, with a traceback.

    Args:
        folder: of the event files.
        start_iter: iterations done before; what an earlier run wrote of later ones is not shown any more.
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
