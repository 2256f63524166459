"""Stop a run on SIGTERM, in all processes after the same iteration, so that a restart resumes it exactly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed

from atss_core.utils import dist


class TerminatedError(BaseException):
    """SIGTERM has ended the run; its state is saved.

    Not an Exception, like KeyboardInterrupt, so that no library handles it as an error of its own.
    """


class Termination:
    """Receive SIGTERM in a ``with`` block, and agree with the other processes when to stop.

    A launcher passes the signal on to each process at another moment. A process that has it informs the
    others after an iteration, and all stop after the next one. Outside the main thread, where Python allows
    no signal handler, the process never asks to stop.
    """

    def __init__(self) -> None:
        self._is_received = False
        self._message = ""  # of the block that is interrupted at once
        self._pending: tuple[torch.Tensor, distributed.Work] | None = None
        self._previous: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pending is not None and exception[0] is None:
            self._pending[1].wait()
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def is_due(self, is_last: bool = False) -> bool:
        """Return whether to stop now; all processes call this after each iteration and get the same answer.

        The flags sent now arrive during the next iteration, so that no process waits, except after the last.
        """
        if dist.world_size() == 1:
            return self._is_received
        answer = self._pending is not None and _wait(*self._pending)
        flag = torch.tensor([float(self._is_received)])
        self._pending = (flag, distributed.all_reduce(flag, async_op=True))
        return answer or (is_last and _wait(*self._pending))

    @contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Stop at once, with ``message``, if the signal comes in this block, which has nothing to save.

        Raises:
            TerminatedError: when the signal comes.
        """
        self._message = message
        if self._is_received:
            raise TerminatedError(message)
        try:
            yield
        except Exception as error:
            if self._is_received:  # interrupted code may raise its own error, as a half-written zip does
                raise TerminatedError(message) from error
            raise
        finally:
            self._message = ""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._is_received = True
        if self._message:
            raise TerminatedError(self._message)


def _wait(flag: torch.Tensor, work: distributed.Work) -> bool:
    work.wait()
    return bool(flag.item())
