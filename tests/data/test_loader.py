"""Workers that die while a batch is awaited, or in use, where PyTorch's own handler would raise."""

import os
import signal
import sys
import threading
import time

import pytest

from atss_core.data.loader import WatchedLoader, _find_dead, _log_pinning_error

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills worker processes")


class Pids:
    """Items are the pid of their worker; some end it."""

    def __init__(self, ends=None):
        self.ends = ends or {}

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index in self.ends:
            self.ends[index]()
        return os.getpid()


def loader(ends=None, num_workers=2):
    return WatchedLoader(Pids(ends), batch_size=1, num_workers=num_workers, collate_fn=lambda items: items[0])


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_loader_gives_all_batches_and_restores_the_signal_handler():
    before = signal.getsignal(signal.SIGCHLD)
    list(loader())
    installed = signal.getsignal(signal.SIGCHLD)  # PyTorch's, once it was used
    assert len(list(loader())) == len(list(loader(num_workers=0))) == 12
    assert signal.getsignal(signal.SIGCHLD) is installed
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("end", "message"), [(kill_itself, r"signal 9 \(Killed\)"), (lambda: os._exit(3), "exit status 3")]
)
def test_death_while_a_batch_is_awaited(end, message):
    with pytest.raises(ChildProcessError, match=rf"worker \(pid \d+\): .*{message}.*DATALOADER.NUM_WORKERS"):
        list(loader({0: end}))


def test_death_while_a_batch_is_in_use_is_reported_at_the_next_one():
    batches = iter(loader())
    pid = next(batches)
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 1
    while time.monotonic() < end:  # PyTorch's handler would raise here
        time.sleep(0.01)
    with pytest.raises(ChildProcessError, match=rf"pid {pid}\): .*signal 9"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_death_of_all_workers_is_one_error():
    batches = iter(loader())
    pids = {next(batches), next(batches)}
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError):
        list(batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_a_living_worker_is_unchanged(num_workers):
    def fail():
        raise OSError("this file")

    with pytest.raises(OSError, match="this file") as error:
        list(loader({1: fail}, num_workers))
    assert error.type is OSError


def test_worker_that_closed_its_files_counts_as_dead():
    class Ending:
        """A killed process whose files are closed but which has not ended yet."""

        is_joined = False

        def __init__(self):
            self.sentinel, other_end = os.pipe()
            os.close(other_end)

        def join(self, timeout):
            self.is_joined = True

        def is_alive(self):
            return not self.is_joined

    worker = Ending()
    assert _find_dead([worker]) is worker
    os.close(worker.sentinel)
    assert _find_dead([]) is None


def test_pinning_thread_does_not_report_a_death(capsys):
    def _pin_memory_loop():
        raise ConnectionResetError

    def other():
        raise KeyError("reported as usual")

    before = threading.excepthook
    threading.excepthook = _log_pinning_error
    try:
        for target in (_pin_memory_loop, other):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    finally:
        threading.excepthook = before
    printed = capsys.readouterr().err
    assert "reported as usual" in printed
    assert "ConnectionResetError" not in printed
