"""Write files so that an interruption never leaves half of one."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from atss_core.config.reading import check_regular, read_text
from atss_core.utils import dist

__all__ = [
    "append",
    "append_json",
    "atomic_write",
    "auxiliary",
    "check_regular",
    "draft_folder",
    "files_below",
    "keep_lines",
    "on_main_process",
    "read_records",
    "read_text",
    "refuse_overwriting",
    "remove_leftovers",
]

logger = logging.getLogger(__name__)


# What ``_temporary`` names: .NAME.HOST.PID.RANDOM.tmp
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
_START = time.time()  # of this process
_failed: set[Path] = set()  # auxiliary files whose failure has been reported


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary sibling of ``path`` and rename it to ``path`` once it is written and flushed.

    On an exception the temporary file is removed and an existing ``path`` stays as it was.

    Raises:
        OSError: if it cannot be written, such as on a full disk.
    """
    temporary = _temporary(path)
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
            ) from cause
        raise


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside ``path``, and remove it at the end with what is still in it."""
    folder = _temporary(path)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, *, is_locked: bool = True) -> None:
    """Remove what killed processes had begun with ``atomic_write`` or ``draft_folder`` in a folder.

    What belongs to a process that still runs on this host stays, and so does every other name.

    Args:
        folder: where to look.
        is_locked: whether this process holds its lock, so that no process of another host is writing;
            otherwise what other hosts have written stays.
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
    """Tell whether a process that runs on this host may still be writing a file."""
    if pid == os.getpid():  # perhaps that of an earlier run: in containers each run has the same one
        return file.stat().st_mtime >= _START
    if os.name == "nt":
        return True  # there os.kill ends the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # of another user
    return True


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in and below a folder, through links to folders as well.

    Each folder is listed once, so loops of links end: under its own name if it has one there, else under that
    of the first link.
    """
    pending, seen = deque([folder]), set()
    while pending:
        current = pending.popleft()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(current) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:  # os.path.isdir also takes a link to itself, for which is_dir raises
            if not (os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()):
                yield current / entry.name
            elif entry.is_symlink():
                pending.append(current / entry.name)
            else:
                pending.appendleft(current / entry.name)


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[str | Path], remedy: str) -> None:
    """Refuse outputs that are inputs, by whatever names and links they are reached.

    Args:
        outputs: files that a command is about to write or remove.
        inputs: files that it reads.
        remedy: one sentence.

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
    """Return what is the same for all names of a file, None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def on_main_process(write: Callable[[], None]) -> None:
    """Let only the main process write, and the others wait for it."""
    if dist.is_main():
        write()
    dist.barrier()


@contextmanager
def auxiliary(file: Path) -> Iterator[None]:
    """Write what a run can do without: a failure is a warning, once per file until it succeeds again.

    Only errors of files and data count. Others, such as SIGTERM in an evaluation, pass.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if file not in _failed:
            cause = error.__cause__ or error  # of ``atomic_write``, which names the file itself
            reason = getattr(cause, "strerror", None) or cause
            logger.warning("%s: cannot be written (%s); the run goes on without it", file, reason)
            logger.debug("the reason", exc_info=True)
        _failed.add(file)
    else:
        _failed.discard(file)


def append(file: Path, content: bytes) -> None:
    """Append to an ``auxiliary`` file all of the content or, on a full disk, nothing."""
    with auxiliary(file):
        size = file.stat().st_size if file.exists() else 0
        try:
            with open(file, "ab") as stream:
                stream.write(content)
        except OSError:
            with suppress(OSError):  # where there is no file, there is nothing to cut
                os.truncate(file, size)
            raise


def append_json(file: Path, record: Mapping[str, Any]) -> None:
    """Append a JSON line to an ``auxiliary`` file."""
    append(file, f"{json.dumps(record)}\n".encode())


def read_records(file: Path, last_iteration: int) -> list[dict[str, Any]]:
    """Read the JSON lines up to an "iteration"; nothing if there is no file.

    A line that a killed run left half-written is skipped with a warning.
    """
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
    """Keep the JSON lines up to an "iteration", so that a resumed run goes on after its checkpoint."""
    with auxiliary(file):
        content = "".join(json.dumps(record) + "\n" for record in read_records(file, last_iteration))
        if file.is_file() and file.read_bytes() != content.encode():
            with atomic_write(file, "w") as stream:
                stream.write(content)
