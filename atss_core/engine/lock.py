"""Lock the folder of a run."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from atss_core.utils.text import printable

logger = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def lock_folder(folder: Path, *, patience: float = 10.0, required: bool = True) -> Iterator[None]:
    """Lock a folder, so that no two processes write to it at the same time.

    The file ``.lock`` names the process, and is removed at the end. The kernel releases the lock of a dead
    process, and forked data workers do not inherit it. File systems without locks only cause a warning.

    Args:
        folder: is created if it is missing.
        patience: seconds to wait for another process; one that was killed may take a moment to exit.
        required: whether to raise if the lock cannot be acquired, instead of a warning.

    Raises:
        ValueError: if another process holds the lock.
        OSError: if the folder is not writable.
    """
    path = folder / LOCK
    signed: list[os.stat_result] = []
    lock = FileLock(path, fallback_to_soft=False, on_acquired=lambda file: signed.append(_sign(file)))
    try:
        _acquire(lock, path, patience)
    except (ValueError, OSError) as error:
        if required:
            raise
        # The next write to a folder that is not writable reports it, so that is no warning here.
        logger.log(logging.WARNING if isinstance(error, ValueError) else logging.DEBUG, "%s", error)
    try:
        yield
    finally:
        if lock.is_locked:  # not in a forked process
            with suppress(OSError):  # such as a removed folder, perhaps with another run in a new one
                if os.path.samestat(path.stat(), signed[0]):
                    path.unlink()
            lock.release()


def _acquire(lock: FileLock, path: Path, patience: float) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise OSError(
            f"{path.parent}: expected a folder that you may write to, got {error.strerror} for {path.name}. "
            f"Correct its permissions, or set OUTPUT_DIR to another folder."
        ) from error
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = "Waiting up to %.0f s for %s, which writes to %s"
            logger.info(message, patience, _holder(path), path.parent)
            lock.acquire(timeout=patience)
    except Timeout as error:
        raise ValueError(
            f"{path.parent}: expected a folder that no other run writes to, but {_holder(path)} does. Wait "
            f"for its end, stop it, or set OUTPUT_DIR to another folder."
        ) from error
    except OSError as error:
        message = "%s: its file system has no locks (%s); no other run may write to this folder"
        logger.warning(message, path.parent, error.strerror)


def _sign(file: int) -> os.stat_result:
    start = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with suppress(OSError):  # on a full disk the lock holds without a signature
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()} (started {start})".encode())
    return os.fstat(file)


def _holder(path: Path) -> str:
    with suppress(OSError):  # removed meanwhile, or not readable on Windows
        return printable(path.read_bytes()[:200].decode(errors="replace")) or "another process"
    return "another process"
