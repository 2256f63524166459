"""Log to the console around progress bars, and to a file; a failure of either does not stop a run."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from atss_core.utils import dist
from atss_core.utils.text import printable

T = TypeVar("T")
logger = logging.getLogger("atss_core")


class _Formatter(logging.Formatter):
    """Escape control characters and indent all lines but the first, so that no name can forge a record."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t").replace("\n", "\n    ")


class _OptionalHandler(logging.Handler):
    """Warn once if a stream cannot be written to; other errors are shown as usual."""

    has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name in logging)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_failed:
            self.has_failed = True
            name = getattr(self, "baseFilename", "standard output")
            logger.warning("%s cannot be written to (%s); the run goes on", name, error.strerror)


class _BarHandler(_OptionalHandler):
    """Print above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except Exception:
            self.handleError(record)


class _FileHandler(_OptionalHandler, logging.handlers.WatchedFileHandler):
    """Append to a file, and create it again if it was removed."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of opening the file; ``emit`` handles those of writing
            self.handleError(record)


def setup_logging(folder: Path | None = None, file_name: str = "log.txt") -> None:
    """Send the project's log to the console and, on the main process, append it to a file.

    Args:
        folder: of the file; None logs only to the console.
        file_name: name of the file.
    """
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        with suppress(OSError):  # a full disk, which the handler has reported
            handler.close()
        logger.removeHandler(handler)
    handlers: list[logging.Handler] = [_BarHandler(logging.INFO if dist.is_main() else logging.ERROR)]
    if folder is not None and dist.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(_FileHandler(folder / file_name, encoding="utf-8", delay=True))
    for handler in handlers:
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)


def progress(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterate with a progress bar, which appears after two seconds and only on a terminal."""
    return tqdm(items, desc=printable(description), delay=2, leave=False, disable=None)
