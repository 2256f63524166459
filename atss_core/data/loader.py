"""Samples, batches and the data loader that reports the death of a worker process as one error."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from atss_core.structures import BoxList, ImageList

logger = logging.getLogger(__name__)

# Seconds for a worker whose connection broke to end, and for an error of a living worker to be delayed.
_GRACE = 1.0


class Sample(NamedTuple):
    """One transformed image with its objects.

    Attributes:
        image: normalised, shape (3, h, w); None if it could not be read and is left out.
        target: the objects, in pixels of ``image``.
        image_id: its id in the annotation file.
        skipped: a message for each unreadable image that was skipped to get this one.
    """

    image: Tensor | None
    target: BoxList
    image_id: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Images that go through the detector together.

    Attributes:
        images: N padded images; N is 0 if all images of an evaluation batch were skipped.
        targets: the objects of each image.
        image_ids: the id of each image in its annotation file.
        skipped: a message for each unreadable image.
    """

    images: ImageList
    targets: list[BoxList]
    image_ids: list[int]
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy all tensors to ``device``."""
        targets = [target.to(device, non_blocking=non_blocking) for target in self.targets]
        return replace(self, images=self.images.to(device, non_blocking), targets=targets)

    def pin_memory(self) -> Batch:
        """Copy all tensors to page-locked memory; the data loader calls this."""
        targets = [target.pin_memory() for target in self.targets]
        return replace(self, images=self.images.pin_memory(), targets=targets)


def collate(samples: Sequence[Sample], size_divisibility: int) -> Batch:
    """Pad samples to one size; samples without an image only add their ``skipped`` messages.

    The padded height and width are multiples of ``size_divisibility``, or those of the largest image for 0.
    """
    readable = [sample for sample in samples if sample.image is not None]
    images = [sample.image for sample in samples if sample.image is not None]
    skipped = [message for sample in samples for message in sample.skipped]
    if not images:
        return Batch(ImageList(torch.empty(0, 3, 0, 0), []), [], [], skipped)
    padded = ImageList.from_tensors(images, size_divisibility)
    return Batch(padded, [s.target for s in readable], [s.image_id for s in readable], skipped)


class WatchedLoader(DataLoader[Sample]):
    """Load batches; if a worker process dies, raise one error that names it.

    PyTorch's SIGCHLD handler raises at any line of the main process, such as in logging or in a progress bar,
    and reading from a dead worker fails in many ways. Here the handler raises only while a batch is awaited,
    and the state of the workers decides what is reported.

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
                raise _worker_death(dead[0])

        if self.pin_memory:
            threading.excepthook = _log_pinning_error
        previous = None
        is_main_thread = threading.current_thread() is threading.main_thread()
        if self.num_workers and hasattr(signal, "SIGCHLD") and is_main_thread:
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
                    raise _worker_death(dead_worker) from error
                raise
            is_waiting = False
            yield batch
        if previous is not None:  # not restored after an error, because more workers may be dying
            signal.signal(signal.SIGCHLD, previous)


def _find_dead(workers: Sequence[BaseProcess]) -> BaseProcess | None:
    """Return a worker that has ended or ends within the grace period, None if all live."""
    ending = connection.wait([worker.sentinel for worker in workers], _GRACE) if workers else []
    for worker in workers:
        if worker.sentinel in ending:
            worker.join(60 * _GRACE)  # the system closes its files a moment before it reports the end
        if not worker.is_alive():
            return worker
    return None


def _log_pinning_error(args: threading.ExceptHookArgs) -> None:
    """Hide the error of the pinning thread when a worker dies; the loader reports the death."""
    if args.thread is not None and "_pin_memory_loop" in args.thread.name:
        logger.debug("Error of the pinning thread: %r", args.exc_value)
    else:
        threading.__excepthook__(args)


def _worker_death(worker: BaseProcess) -> ChildProcessError:
    code = worker.exitcode or 0
    end = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit status {code}"
    return ChildProcessError(
        f"DataLoader worker (pid {worker.pid}): expected it to run to the end, got its end by {end}. "
        f"If memory or /dev/shm ran out, lower DATALOADER.NUM_WORKERS"
    )


def init_worker(worker: int) -> None:
    """Let only the main process end a worker; clusters send SIGTERM to all, and the main one saves first."""

    def wait_for_termination() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            logger.debug("Worker %d leaves SIGTERM to its main process", os.getpid())
        os._exit(0)

    # Living workers fail when the main process ends because another worker died.
    sys.excepthook = lambda *error: logger.debug("Error beside the loading of images", exc_info=error)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=wait_for_termination, daemon=True).start()
