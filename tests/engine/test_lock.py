"""Folder locks that other processes hold while they live, fork and die."""

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from atss_core.engine.lock import LOCK, lock_folder

fcntl = pytest.importorskip("fcntl")


def hold(folder, then):
    """Start a process that locks a folder and then runs a line; returns after its first output."""
    lines = f"""
        import os, pathlib, sys, time
        from atss_core.engine.lock import lock_folder
        with lock_folder(pathlib.Path({str(folder)!r})):
            {then}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(lines)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    process.printed = int(process.stdout.readline())
    return process


HOLD = "print(os.getpid(), flush=True); sys.stdin.read()"  # until its input is closed
# The worker prints its process id; worker and parent then run for long.
FORK = "os.fork() or print(os.getpid(), flush=True); time.sleep(600)"


def test_the_error_names_the_other_process_and_its_end_frees_the_lock(tmp_path):
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


def test_the_lock_waits_for_a_process_that_is_about_to_end(tmp_path, monkeypatch, caplog):
    holder = hold(tmp_path, HOLD)
    # The first wait ends the holder, so the test does not depend on timing.
    monkeypatch.setattr(time, "sleep", lambda seconds: holder.communicate())
    with caplog.at_level(logging.INFO), lock_folder(tmp_path, patience=60):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        f"Waiting up to 60 s for process {holder.pid} on {socket.gethostname()}"
    ]


def test_neither_a_killed_process_nor_its_forked_worker_keeps_the_lock(tmp_path):
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
    held = lock_folder(tmp_path, patience=0)
    held.__enter__()
    worker = os.fork()
    if worker == 0:
        status = 1
        try:
            held.__exit__(None, None, None)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(worker, 0)[1] == 0
    assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
    with pytest.raises(ValueError, match="no other run"), lock_folder(tmp_path, patience=0):
        pytest.fail("the child has released it")
    held.__exit__(None, None, None)
    assert not os.listdir(tmp_path)


def test_an_optional_lock_that_is_held_is_a_warning(tmp_path, caplog):
    with lock_folder(tmp_path, patience=0):
        before = (tmp_path / LOCK).read_bytes()
        with lock_folder(tmp_path, patience=0, required=False):
            done = True
        assert done
        assert f"but process {os.getpid()} on" in caplog.text
        assert (tmp_path / LOCK).read_bytes() == before


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_warning(code, tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path):
        (record,) = caplog.records
        assert record.message == (
            f"{tmp_path}: its file system has no locks ({os.strerror(code)}); "
            "no other run may write to this folder"
        )


def test_a_folder_that_is_not_writable_is_an_error(tmp_path):
    (tmp_path / "file").write_text("content")
    with pytest.raises(OSError, match=r"file: expected a folder that you may write to, got File exists"):
        lock_folder(tmp_path / "file").__enter__()


def test_a_recreated_folder_belongs_to_the_new_run(tmp_path):
    old, new = lock_folder(tmp_path), lock_folder(tmp_path, patience=0)
    old.__enter__()
    (tmp_path / LOCK).unlink()
    new.__enter__()
    old.__exit__(None, None, None)
    with pytest.raises(ValueError, match="no other run"), lock_folder(tmp_path, patience=0):
        pytest.fail("the old run has removed the lock of the new one")
    new.__exit__(None, None, None)
    assert not os.listdir(tmp_path)
