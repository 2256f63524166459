"""Write files so that an interruption never leaves half of one."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from atss_core.utils import dist

logger = logging.getLogger(__name__)


# What ``atomic_write`` names its temporary files: .NAME.HOST.PID.RANDOM.tmp
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary sibling of ``path`` and rename it to ``path`` once it is written and flushed.

    On an exception the temporary file is removed and an existing ``path`` stays as it was.

    Raises:
        OSError: if it cannot be written, such as on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x": a file of that name, or a link to another, is never written through.
        # A lone surrogate, which UTF-8 lacks, is escaped as JSON escapes it.
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with open(temporary, mode.replace("w", "x"), encoding=encoding, errors=errors) as file:
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


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes had begun to write with ``atomic_write`` into a folder.

    A file of a process that still runs on this host stays, and so does every other name.
    """
    for file in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(file.name)
        if match and not (match["host"] == _host() and _is_running(int(match["pid"]))):
            logger.info("Removing %s, which a killed run left unfinished", file)
            file.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    return True


def check_regular(path: Path) -> None:
    """Refuse to open what is no plain file: reading a pipe or a device may never end.

    Raises:
        FileNotFoundError: if there is nothing, or a link that leads nowhere or to itself.
        ValueError: for a folder, pipe, device or socket.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise
    except OSError as error:  # such as a loop of links
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a pipe",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        raise ValueError(f"{path}: expected a file, got {kinds.get(stat.S_IFMT(mode), 'something else')}")


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
        FileNotFoundError: if there is none.
        ValueError: if it is in another encoding, or no plain file.
    """
    check_regular(file)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
