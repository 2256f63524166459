"""Write files atomically, append to logs, and clean up after killed processes."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from atss_core.config.reading import check_regular as check_regular
from atss_core.config.reading import read_text as read_text
from atss_core.utils import dist

logger = logging.getLogger(__name__)

# Names of ``_temporary``: .NAME.HOST.PID.RANDOM.tmp
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
_START = time.time()  # of this process
_failed: set[Path] = set()  # auxiliary files whose failure has been reported


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file in the same folder, and rename it to ``path`` at the end of the block.

    An exception removes it and leaves an existing ``path`` unchanged.

    Raises:
        OSError: if it cannot be written, such as on a full disk.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x" never follows an existing link. Lone surrogates, which UTF-8 lacks, are escaped as in JSON.
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with open(temporary, mode.replace("w", "x"), encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # without a folder there is no file
            temporary.unlink()
        # PyTorch raises a RuntimeError on top of the error of the disk.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(
                f"cannot write {path} ({cause.strerror or cause}); what was there before is unchanged. "
                f"{path.parent} must be a folder that has room and that you may write to"
            ) from cause
        raise


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder next to ``path``, and remove it with its content at the end."""
    folder = _temporary(path)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, *, is_locked: bool = True) -> None:
    """Remove temporary files that killed processes left with ``atomic_write`` or ``draft_folder``.

    Keeps those of processes that still run on this host, and all files with other names.

    Args:
        folder: to clean.
        is_locked: whether this process holds the lock of the folder, so that no other host writes to it;
            otherwise the files of other hosts are kept too.
    """
    for file in folder.glob(".*.tmp"):
        with auxiliary(file):
            if _is_leftover(file, is_locked):
                logger.info("Removing %s, which a killed run left unfinished", file)
                if file.is_dir() and not file.is_symlink():
                    shutil.rmtree(file)
                else:
                    file.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _is_leftover(file: Path, is_locked: bool) -> bool:
    match = _TEMPORARY.fullmatch(file.name)
    if match is None or match["host"] != _host():
        return match is not None and is_locked
    return not _is_writing(int(match["pid"]), file)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())


def _is_writing(pid: int, file: Path) -> bool:
    """Tell whether a process of this host may still be writing a file."""
    if pid == os.getpid():  # or of an earlier run: in containers each run has the same process id
        return file.stat().st_mtime >= _START
    if os.name == "nt":
        return True  # on Windows os.kill ends the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # of another user
    return True


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[str | Path], remedy: str) -> None:
    """Refuse outputs of a command that are its inputs, also under other names and through links.

    Args:
        outputs: files to write or remove.
        inputs: files to read.
        remedy: last sentence of the error.

    Raises:
        ValueError: if an output is an input.
    """
    existing = {_file_id(path): path for path in outputs}
    existing.pop(None, None)
    for path in inputs if existing else ():
        output = existing.get(_file_id(Path(os.path.expanduser(path))))
        if output is not None:
            raise ValueError(
                f"{output} would be overwritten: expected a file to write, got an input of this command. "
                f"{remedy}"
            )


def _file_id(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def on_main_process(write: Callable[[], None]) -> None:
    """Write on the main process only; the others wait."""
    if dist.is_main():
        write()
    dist.barrier()


@contextmanager
def auxiliary(file: Path) -> Iterator[None]:
    """Write a file that a run does not need: an OSError or ValueError becomes a warning.

    The warning appears once per file until writing succeeds again.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if file not in _failed:
            cause = error.__cause__ or error  # ``atomic_write`` adds the name of the file
            reason = getattr(cause, "strerror", None) or cause
            logger.warning("%s: cannot be written (%s); the run goes on without it", file, reason)
            logger.debug("the reason", exc_info=True)
        _failed.add(file)
    else:
        _failed.discard(file)


def append(file: Path, content: bytes) -> None:
    """Append to an ``auxiliary`` file: all of the content or, on a full disk, nothing."""
    with auxiliary(file):
        size = file.stat().st_size if file.exists() else 0
        try:
            with open(file, "ab") as stream:
                stream.write(content)
        except OSError:
            with suppress(OSError):  # without a file there is nothing to truncate
                os.truncate(file, size)
            raise


def append_json(file: Path, record: Mapping[str, Any]) -> None:
    """Append a JSON line to an ``auxiliary`` file."""
    append(file, f"{json.dumps(record)}\n".encode())


def read_records(file: Path, last_iteration: int) -> list[dict[str, Any]]:
    """Read the JSON lines up to an "iteration", none if there is no file; broken lines are a warning."""
    records = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            record = json.loads(line)
            if record["iteration"] <= last_iteration:
                records.append(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            logger.warning("Dropped a broken line of %s: %.60s", file, line.decode(errors="replace"))
    return records


def keep_lines(file: Path, last_iteration: int) -> None:
    """Remove the JSON lines after an "iteration", which a resumed run will write again."""
    with auxiliary(file):
        content = "".join(json.dumps(record) + "\n" for record in read_records(file, last_iteration))
        if file.is_file() and file.read_bytes() != content.encode():
            with atomic_write(file, "w") as stream:
                stream.write(content)
