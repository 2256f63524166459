"""Log to the console beside a progress bar, and to a file; neither ends a run when it fails."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from atss_core.utils import dist
from atss_core.utils.text import printable

logger = logging.getLogger("atss_core")


class _Formatter(logging.Formatter):
    """Escape control characters, and indent the further lines of a record, so that no name forges one."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t").replace("\n", "\n    ")


class _OutlivedHandler(logging.Handler):
    """Say once that a stream cannot be written to; errors of the program are shown as usual."""

    has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name in logging)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_failed:
            self.has_failed = True
            name = getattr(self, "baseFilename", "standard output")
            logger.warning("%s cannot be written to (%s); the run goes on", name, error.strerror)


class _BarHandler(_OutlivedHandler):
    """Print above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except Exception:
            self.handleError(record)


class _FileHandler(_OutlivedHandler, logging.handlers.WatchedFileHandler):
    """Append to a file, which is made anew if it has been removed."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of opening it; those of writing are handled there
            self.handleError(record)


def setup_logging(folder: Path | None = None, file_name: str = "log.txt") -> None:
    """Send the project's log to the console and, on the main process, append it to a file.

    Args:
        folder: where the file is; None logs to the console alone.
        file_name: name of the file.
    """
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        with suppress(OSError):  # of a full disk, which the handler has reported
            handler.close()
        logger.removeHandler(handler)
    handlers: list[logging.Handler] = [_BarHandler(logging.INFO if dist.is_main() else logging.ERROR)]
    if folder is not None and dist.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(_FileHandler(folder / file_name, encoding="utf-8", delay=True))
    for handler in handlers:
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
