"""Stop a run when the cluster asks for it, in all processes after the same iteration."""

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

    Like KeyboardInterrupt, it is no Exception, so that no library takes it for an error of its own.
    """


class Termination:
    """Notice SIGTERM, while in a ``with`` block, and agree with the other processes on it.

    A launcher passes the signal on to each process at another moment. Those that have it say so after an
    iteration, and all stop after the next one. Outside the main thread Python allows no signal handler, and
    the process never asks to stop.
    """

    def __init__(self) -> None:
        self._is_noticed = False
        self._message = ""
        self._pending: tuple[torch.Tensor, distributed.Work] | None = None
        self._previous: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pending is not None and exception[0] is None:
            self._pending[1].wait()
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def is_due(self, wait: bool = False) -> bool:
        """Tell whether to stop now; all processes call this after each iteration and get the same answer.

        What is sent now arrives while the next iteration runs, so that nobody waits, unless told to.
        """
        if dist.world_size() == 1:
            return self._is_noticed
        answer = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            answer = bool(flag.item())
        flag = torch.tensor([float(self._is_noticed)])
        self._pending = (flag, distributed.all_reduce(flag, async_op=True))
        if wait:
            self._pending[1].wait()
            answer = answer or bool(flag.item())
        return answer

    @contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Stop at once in this block, with ``message``, if the signal comes: there is nothing left to save.

        Raises:
            TerminatedError: when the signal comes.
        """
        self._message = message
        if self._is_noticed:
            raise TerminatedError(message)
        try:
            yield
        except Exception as error:
            if self._is_noticed:  # what was interrupted may raise its own error, as a half-written zip does
                raise TerminatedError(message) from error
            raise
        finally:
            self._message = ""

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._is_noticed = True
        if self._message:
            raise TerminatedError(self._message)
