"""Curves for TensorBoard, where it is installed."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atss_core.utils import dist
from atss_core.utils.extras import has

logger = logging.getLogger(__name__)


class Board:
    """Write numbers of a training for TensorBoard.

    Nothing is written where it is not installed, and on other processes than the main one.

    Args:
        folder: of the event files.
        start_iter: iterations done before; what an earlier run wrote of later ones is not shown any more.
    """

    def __init__(self, folder: Path, start_iter: int) -> None:
        self._writer: Any = None
        if dist.is_main() and has("tensorboard"):
            module = importlib.import_module("torch.utils.tensorboard")
            self._writer = module.SummaryWriter(str(folder), purge_step=start_iter + 1)
            logger.info("tensorboard --logdir %s shows the curves", folder)

    def add(self, iteration: int, section: str, values: Mapping[str, float | None]) -> None:
        """Write numbers of an iteration as ``section/name``."""
        if self._writer is None:
            return
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"{section}/{name}", value, iteration)
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()
