"""Write files so that an interruption never leaves half of one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from atss_core.utils import dist

logger = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary sibling of ``path`` and rename it to ``path`` once it is written and flushed.

    On an exception the temporary file is removed and an existing ``path`` stays as it was.

    Raises:
        OSError: if it cannot be written, such as on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # where there is no folder, there is no such file
            temporary.unlink()
        # PyTorch hides the error of the disk behind one of its own.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(
                f"cannot write {path} ({cause.strerror or cause}); what was there before is unchanged. "
                f"{path.parent} must be a folder that has room and that you may write to"
            ) from error
        raise


def on_main_process(write: Callable[[], None]) -> None:
    """Let only the main process write, and the others wait for it."""
    if dist.is_main():
        write()
    dist.barrier()


def keep_lines(file: Path, last_iteration: int) -> None:
    """Keep the JSON lines up to an "iteration", so that a resumed run goes on after its checkpoint.

    A line that a killed run left half-written goes as well. No file is made where there is none.
    """
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["iteration"] <= last_iteration:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            logger.warning("Dropped a broken line of %s: %.60s", file, line)
    with atomic_write(file, "w") as stream:
        stream.writelines(kept)


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: if it is in another encoding.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
