"""List the files of a folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, including linked folders.

    Each folder is listed once, so circular links end: under its own path if it is inside, else under the
    first link to it.
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
        for entry in ordered:  # os.path.isdir also takes a link to itself, where is_dir raises
            if not (os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()):
                yield current / entry.name
            elif entry.is_symlink():
                pending.append(current / entry.name)
            else:
                pending.appendleft(current / entry.name)
