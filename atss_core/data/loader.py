"""A data loader that reports the death of a worker process as one error."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from atss_core.data.batch import Batch, Sample

logger = logging.getLogger(__name__)

# Seconds for a worker whose connection broke to end, and for an error of a living worker to be delayed.
GRACE = 1.0


class WatchedLoader(DataLoader[Sample]):
    """Load batches; if a worker process dies, raise one error that names it.

    PyTorch's SIGCHLD handler raises in whatever line the main process is at, be it in logging or in a
    progress bar, and what the main process reads from a dead worker fails in many ways. Here the handler
    raises only while a batch is awaited, and the state of the workers decides what is reported.

    Raises:
        ChildProcessError: while iterating, if a worker has died.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Iterate over the batches."""
        workers: list[BaseProcess] = []
        is_waiting = False

        def interrupt(number: int = 0, frame: FrameType | None = None) -> None:
            nonlocal is_waiting
            dead = [worker for worker in workers if worker.exitcode] if is_waiting else []
            if dead:
                is_waiting = False  # one error is enough when several die
                raise _death(dead[0])

        if self.pin_memory:
            threading.excepthook = _log_pinning
        previous = None
        if self.num_workers and hasattr(signal, "SIGCHLD") and _is_main_thread():
            signal_handling._set_SIGCHLD_handler()  # does nothing the next time, when the workers start
            previous = signal.signal(signal.SIGCHLD, interrupt)
        batches = super().__iter__()
        workers += getattr(batches, "_workers", [])  # without NUM_WORKERS there are none
        while True:
            try:
                is_waiting = True
                interrupt()  # for a worker that died while the last batch was in use
                batch = next(batches)
            except StopIteration:
                break
            except Exception as error:
                is_waiting = False
                dead_worker = _find_dead(workers)
                if dead_worker is not None:
                    raise _death(dead_worker) from error
                raise
            is_waiting = False
            yield batch
        if previous is not None:  # after an error it stays away, because more workers may be dying
            signal.signal(signal.SIGCHLD, previous)


def _find_dead(workers: Sequence[BaseProcess]) -> BaseProcess | None:
    """Return a worker that has ended or ends within the grace, None if all live."""
    ending = connection.wait([worker.sentinel for worker in workers], GRACE) if workers else []
    for worker in workers:
        if worker.sentinel in ending:
            worker.join(60 * GRACE)  # the system closes its files a moment before it reports the end
        if not worker.is_alive():
            return worker
    return None


def _log_pinning(args: threading.ExceptHookArgs) -> None:
    """Keep off the console what the pinning thread meets when a worker dies; the loader reports the death."""
    if args.thread is not None and "_pin_memory_loop" in args.thread.name:
        logger.debug("Error of the pinning thread: %r", args.exc_value)
    else:
        threading.__excepthook__(args)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _death(worker: BaseProcess) -> ChildProcessError:
    code = worker.exitcode or 0
    end = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit status {code}"
    return ChildProcessError(
        f"DataLoader worker (pid {worker.pid}): expected it to run to the end, got its end by {end}. "
        f"If memory or /dev/shm ran out, lower DATALOADER.NUM_WORKERS"
    )
