"""Log to the console beside a progress bar, and to a file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from atss_core.utils import dist


class _BarHandler(logging.Handler):
    """Print above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def setup_logging(folder: Path | None = None, file_name: str = "log.txt") -> None:
    """Send the project's log to the console and, on the main process, append it to a file.

    Args:
        folder: where the file is; None logs to the console alone.
        file_name: name of the file.
    """
    logger = logging.getLogger("atss_core")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    handlers: list[logging.Handler] = [_BarHandler(logging.INFO if dist.is_main() else logging.ERROR)]
    if folder is not None and dist.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / file_name, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
