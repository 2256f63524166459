"""Write files so that an interruption never leaves half of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from atss_core.utils import dist


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary sibling of ``path`` and rename it to ``path`` once it is written and flushed.

    On an exception the temporary file is removed and an existing ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def on_main_process(write: Callable[[], None]) -> None:
    """Let only the main process write, and the others wait for it."""
    if dist.is_main():
        write()
    dist.barrier()
