"""Lock a folder, so that two processes never write to it at the same time."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType

from atss_core.utils.text import printable

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK = ".lock"
_held: set[int] = set()  # file descriptors


def _leave_to_parent() -> None:
    """Close the locks in a forked process: a data worker that outlives its parent must not hold them."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


@contextmanager
def lock_folder(folder: Path, *, patience: float = 10.0, required: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which the kernel releases as well when this process dies.

    The file ``.lock`` says which process holds it, and is removed at the end. Where the operating system or
    the file system has no locks, nothing is locked.

    Args:
        folder: is made if it is missing.
        patience: seconds to wait for another process; one that was killed may take a moment to die.
        required: whether to raise if the lock cannot be had; otherwise that is a warning.

    Raises:
        ValueError: if another process still holds the lock, which is required.
        OSError: if the folder cannot be written to.
    """
    path, lock = folder / LOCK, None
    try:
        lock = _acquire(path, patience)
    except (ValueError, OSError) as error:
        if required:
            raise
        # Whatever is written next reports a folder that cannot be written to.
        logger.log(logging.WARNING if isinstance(error, ValueError) else logging.DEBUG, "%s", error)
    try:
        yield
    finally:
        if lock in _held:  # not in a forked process
            if _is_open_at(path, lock):
                with suppress(OSError):  # what stays is no lock
                    path.unlink()
            _held.remove(lock)
            os.close(lock)


def _acquire(path: Path, patience: float) -> int | None:
    """Return the descriptor of the locked file, None where there are no locks."""
    if fcntl is None:
        logger.debug("%s is not locked: this operating system has no flock", path.parent)
        return None
    deadline, is_told = time.monotonic() + patience, False
    while True:
        lock = _open(path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the latter on some network file systems
            holder = printable(os.read(lock, 200).decode(errors="replace")) or "another process"
            os.close(lock)
        except OSError as error:
            os.close(lock)
            logger.warning(
                "%s: its file system has no locks (%s); no other run may write to this folder",
                path.parent,
                error.strerror,
            )
            return None
        else:
            if _is_open_at(path, lock):
                _held.add(lock)
                _sign(lock)
                return lock
            os.close(lock)  # the holder before has removed it
            continue
        if time.monotonic() >= deadline:
            raise ValueError(
                f"{path.parent}: expected a folder that no other run writes to, but {holder} does. Wait for "
                f"its end, stop it, or set OUTPUT_DIR to another folder."
            )
        if not is_told:
            logger.info("Waiting up to %.0f s for %s, which writes to %s", patience, holder, path.parent)
            is_told = True
        time.sleep(0.1)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OSError(
            f"{path.parent}: expected a folder that you may write to, got {error.strerror} for {path.name}. "
            f"Correct its permissions, or set OUTPUT_DIR to another folder."
        ) from error


def _is_open_at(path: Path, lock: int) -> bool:
    """Tell whether the locked file is still the one of this name, and not removed or replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except OSError:  # removed
        return False


def _sign(lock: int) -> None:
    start = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with suppress(OSError):  # on a full disk the lock holds without a signature
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()} (started {start})".encode())
