"""Locks of folders, held by other processes that live, fork and die."""

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from atss_core.utils import lock
from atss_core.utils.lock import LOCK, lock_folder

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="needs flock")


def hold(folder, then):
    """Start a process that holds the lock of a folder and runs some lines with it; returns when it does."""
    lines = f"""
        import os, pathlib, sys, time
        from atss_core.utils.lock import lock_folder
        with lock_folder(pathlib.Path({str(folder)!r})):
            {then}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(lines)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    process.printed = int(process.stdout.readline())
    return process


HOLD = "print(os.getpid(), flush=True); sys.stdin.read()"  # until its input is closed
# The worker tells its number and, as its parent, goes on for long.
FORK = "os.fork() or print(os.getpid(), flush=True); time.sleep(600)"


def test_another_process_is_named_and_the_lock_is_free_after_it(tmp_path):
    holder = hold(tmp_path, HOLD)
    before = (tmp_path / LOCK).read_bytes()
    host = socket.gethostname()
    message = (
        rf"expected a folder that no other run writes to, but process {holder.pid} on {host} \(started 20"
    )
    with pytest.raises(ValueError, match=message) as error, lock_folder(tmp_path, patience=0):
        pytest.fail("locked twice")
    assert "\n" not in str(error.value)
    assert (tmp_path / LOCK).read_bytes() == before
    holder.communicate()
    assert not os.listdir(tmp_path)
    with lock_folder(tmp_path, patience=0):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
    assert not os.listdir(tmp_path)


def test_a_process_that_ends_a_moment_later_is_waited_for(tmp_path, monkeypatch, caplog):
    holder = hold(tmp_path, HOLD)
    # The first wait ends the holder, so that no test depends on how fast it dies.
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: holder.communicate())
    with caplog.at_level(logging.INFO), lock_folder(tmp_path, patience=60):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        f"Waiting up to 60 s for process {holder.pid} on {socket.gethostname()}"
    ]


def test_a_killed_process_holds_nothing_and_neither_does_its_forked_worker(tmp_path):
    holder = hold(tmp_path, FORK)
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).exists()
    worker = holder.printed
    try:
        with lock_folder(tmp_path, patience=0):
            assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_process_leaves_the_lock_to_its_parent(tmp_path):
    with lock_folder(tmp_path, patience=0):
        worker = os.fork()
        if worker == 0:
            os._exit(lock._held != set())
        assert os.waitpid(worker, 0)[1] == 0
        with pytest.raises(ValueError, match="no other run"), lock_folder(tmp_path, patience=0):
            pytest.fail("the child has released it")


def test_where_it_is_not_required_the_work_goes_on(tmp_path, caplog):
    with lock_folder(tmp_path, patience=0):
        before = (tmp_path / LOCK).read_bytes()
        with lock_folder(tmp_path, patience=0, required=False):
            done = True
        assert done
        assert f"but process {os.getpid()} on" in caplog.text
        assert (tmp_path / LOCK).read_bytes() == before


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_told(code, tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock_folder(tmp_path):
        (record,) = caplog.records
        assert record.message == (
            f"{tmp_path}: its file system has no locks ({os.strerror(code)}); "
            "no other run may write to this folder"
        )


def test_operating_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with lock_folder(tmp_path):
        assert not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("content")
    with pytest.raises(OSError, match=r"file: expected a folder that you may write to, got File exists"):
        lock_folder(tmp_path / "file").__enter__()


def test_a_folder_that_is_removed_and_made_anew_belongs_to_the_new_run(tmp_path):
    old, new = lock_folder(tmp_path), lock_folder(tmp_path, patience=0)
    old.__enter__()
    (tmp_path / LOCK).unlink()
    new.__enter__()
    old.__exit__(None, None, None)
    with pytest.raises(ValueError, match="no other run"), lock_folder(tmp_path, patience=0):
        pytest.fail("the old run has removed the lock of the new one")
    new.__exit__(None, None, None)
    assert not os.listdir(tmp_path)
