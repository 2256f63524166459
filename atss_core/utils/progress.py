"""A progress bar for what may take long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

from atss_core.utils.text import printable

T = TypeVar("T")


def progress(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterate with a bar that appears after two seconds, and only on a terminal."""
    return tqdm(items, desc=printable(description), delay=2, leave=False, disable=None)
