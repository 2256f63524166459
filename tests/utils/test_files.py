import json
import os
import resource
import shutil
import socket
import subprocess
import sys

import pytest

from atss_core.utils import files
from atss_core.utils.files import (
    append,
    append_json,
    atomic_write,
    check_regular,
    draft_folder,
    keep_lines,
    read_text,
    refuse_overwriting,
    remove_leftovers,
)


def test_an_error_during_atomic_write_leaves_only_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def write_half():
        with atomic_write(file, "w") as stream:
            stream.write("new")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_writers_use_two_temporary_files(tmp_path):
    with atomic_write(tmp_path / "a", "w") as first, atomic_write(tmp_path / "a", "w") as second:
        assert first.name != second.name
        first.write("1")
        second.write("2")
    assert (tmp_path / "a").read_text() == "1"  # the outer block ends last


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nothing")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        for path, kind in (
            (tmp_path, "a folder"),
            (tmp_path / "pipe", "a pipe"),
            (tmp_path / "socket", "a socket"),
            ("/dev/zero", "a device"),
        ):
            with pytest.raises(ValueError, match=f"expected a file, got {kind}"):
                check_regular(path)
    for name in ("loop", "gone", "absent"):
        with pytest.raises(FileNotFoundError, match=name):
            check_regular(tmp_path / name)
    with pytest.raises(ValueError, match="a pipe"):
        read_text(tmp_path / "pipe")


def test_outputs_must_not_be_inputs_under_any_name(tmp_path):
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "a.png"
    file.write_bytes(b"a")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "b.png").symlink_to(file)
    os.link(file, tmp_path / "hard.png")
    names = ("in/a.png", "link/a.png", "in/../in/./a.png", "b.png", "hard.png")
    for output in (tmp_path / name for name in names):
        with pytest.raises(ValueError, match=r"would be overwritten: .*\. Give another name\.$") as error:
            refuse_overwriting([tmp_path / "new", output], [tmp_path / "other", file], "Give another name.")
        assert str(error.value).startswith(str(output))
    refuse_overwriting([tmp_path / "new", tmp_path / "in" / "b.png"], [file, "https://a.org/a.png"], "")


def test_a_failing_auxiliary_file_is_reported_once_and_retried(tmp_path, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    append_json(folder / "a.jsonl", {"iteration": 1})
    shutil.rmtree(folder)
    for iteration in (2, 3):
        append_json(folder / "a.jsonl", {"iteration": iteration})
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.message == (
        f"{folder / 'a.jsonl'}: cannot be written (No such file or directory); the run goes on without it"
    )
    folder.mkdir()
    append_json(folder / "a.jsonl", {"iteration": 4})
    assert (folder / "a.jsonl").read_text() == '{"iteration": 4}\n'
    shutil.rmtree(folder)
    append_json(folder / "a.jsonl", {"iteration": 5})
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_a_warning(tmp_path, caplog):
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    append(tmp_path / "a.jsonl", b"line\n")
    assert "a.jsonl: cannot be written (No space left on device)" in caplog.text


def test_a_line_that_does_not_fit_is_not_written_in_part(tmp_path, caplog):
    file = tmp_path / "a.jsonl"
    append(file, b"1\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, before[1]))  # has room for four bytes more
    try:
        append(file, b"too long\n")
        size = file.stat().st_size
        append(file, b"2\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "a.jsonl: cannot be written (File too large)" in caplog.text
    assert (size, file.read_bytes()) == (2, b"1\n2\n")


def test_lines_up_to_an_iteration_are_kept_and_broken_ones_dropped(tmp_path):
    file = tmp_path / "a.jsonl"
    good = [json.dumps({"iteration": i, "loss": 0.1 * i, "AP": float("nan")}) for i in range(1, 5)]
    broken = [
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 5_000,
        b"[1]",
        b'{"iteration": "2"}',
        b'{"iteration": 4, "lo',
    ]
    file.write_bytes(b"\n".join([*(line.encode() for line in good), *broken]))
    keep_lines(file, 3)
    assert file.read_text().splitlines() == good[:3]
    inode = file.stat().st_ino
    keep_lines(file, 3)
    assert file.stat().st_ino == inode, "an unchanged file is not written"


def test_an_old_temporary_file_with_the_own_process_id_is_removed(tmp_path):
    """In a container each run has the same process id."""
    names = [f".bbox.json.{files._host()}.{os.getpid()}.{i:08d}.tmp" for i in (0, 1)]
    for name in names:
        (tmp_path / name).touch()
    os.utime(tmp_path / names[0], (files._START - 60,) * 2)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == names[1:]


def test_draft_folders_of_killed_processes_are_removed(tmp_path):
    with draft_folder(tmp_path / "net.xml") as own:
        pattern = own.name.replace(f".{os.getpid()}.", ".{}.")
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        killed = pattern.format(dead.pid)
        foreign = killed.replace(f".{files._host()}.", ".another-host.")
        others = (killed.removesuffix(".tmp"), killed.replace(f".{dead.pid}.", ".x."), ".notes.tmp")
        for name in (killed, foreign, *others):
            (tmp_path / name).mkdir()
            (tmp_path / name / "net.xml").write_text("half")
        (tmp_path / "kept").write_text("not a draft")
        link = killed.replace("net", "link")
        (tmp_path / link).symlink_to(own)
        remove_leftovers(tmp_path, is_locked=False)
        left = {own.name, foreign, *others, "kept"}
        assert set(os.listdir(tmp_path)) == left
        remove_leftovers(tmp_path)
        assert set(os.listdir(tmp_path)) == left - {foreign}
        (own / "net.bin").write_text("half")
    assert set(os.listdir(tmp_path)) == {*others, "kept"}


def test_windows_does_not_call_os_kill_which_ends_processes(tmp_path, monkeypatch):
    def kill(*arguments):
        raise AssertionError("os.kill ends a process on Windows")

    monkeypatch.setattr(files.os, "kill", kill)
    monkeypatch.setattr(files.os, "name", "nt")
    is_writing = files._is_writing(1, tmp_path)
    monkeypatch.undo()
    assert is_writing
