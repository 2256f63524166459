"""What commands print: to consoles of any encoding, that are closed, full or read by nobody."""

import logging
import shutil
import subprocess
import sys

import pytest

from atss_core.utils.console import console
from atss_core.utils.logging import setup_logging
from tests.golden import ROOT

TEXT = "кот \ud800 \x1b[31m"
PROGRAM = """
import sys
from atss_core.utils.console import console
with console(), console():
    print("1: кот \\ud800 \\x1b[31m")
    {}
    print("2", file=sys.stderr)
    print("3" * 100_000)
"""
needs_dev_full = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")


def shell(redirection, line="", **environment):
    """Run the program in a shell."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, PROGRAM.format(line)],
        capture_output=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"1: \u043a\u043e\u0442 \ud800 \x1b[31m"),
        ("cp1252", rb"1: \u043a\u043e\u0442 \ud800 \x1b[31m"),
        ("utf-8", "1: кот".encode() + rb" \ud800 \x1b[31m"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(encoding, shown):
    done = shell("", PYTHONIOENCODING=encoding)
    assert done.stdout.splitlines() == [shown, b"3" * 100_000]
    assert done.stderr == b"2\n"
    assert done.returncode == 0


@needs_dev_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("redirection", "line", "code", "error"),
    [
        (">/dev/full", "", 2, b"error: standard output cannot be written to (No space left on device)\n"),
        (">/dev/full", "sys.exit(0)", 2, b"error: standard output cannot be written to"),
        (">/dev/full 2>/dev/full", "", 2, b""),
        (">&-", "", 0, b"2\n"),
        (">&- 2>&-", "", 0, b""),
        ("2>/dev/full", "", 0, b""),
        ("2>/dev/full", "sys.exit(3)", 3, b""),
        ("| true; exit ${PIPESTATUS[0]}", "", 141, b""),
        ("2>/dev/null", "raise OSError('another')", 1, b""),
    ],
)
def test_console_that_is_gone(redirection, line, code, error, unbuffered):
    done = shell(redirection, line, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert error in done.stderr


def test_errors_of_a_command_and_the_streams_are_left_alone():
    before = sys.stdout, sys.stderr
    with pytest.raises(OSError, match="another"), console():
        raise OSError("another")
    assert (sys.stdout, sys.stderr) == before


@needs_dev_full
def test_log_outlives_the_console(tmp_path, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with console():
            setup_logging(tmp_path)
            for number in range(3):
                logging.getLogger("atss_core.test").info("line %d", number)
            print("for nobody")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "standard output cannot be written to (No space left on device); the run goes on",
        *("line 0", "line 1", "line 2"),
    ]


@needs_dev_full
def test_log_file_on_a_full_disk_is_reported_once(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    setup_logging(tmp_path)
    for number in range(3):
        logging.getLogger("atss_core.test").info("line %d", number)
    setup_logging()
    shown = capsys.readouterr()
    assert [line.split(": ", 1)[1] for line in shown.out.splitlines()] == [
        "line 0",
        f"{tmp_path / 'log.txt'} cannot be written to (No space left on device); the run goes on",
        *("line 1", "line 2"),
    ]
    assert shown.err == ""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.mkdir(), "Is a directory"),
        (lambda file: file.symlink_to("gone/log.txt"), "No such file or directory"),
    ],
)
def test_log_file_that_cannot_be_opened_is_reported_once(spoil, reason, tmp_path, capsys):
    spoil(tmp_path / "log.txt")
    setup_logging(tmp_path)
    for number in range(3):
        logging.getLogger("atss_core.test").info("line %d", number)
    shown = capsys.readouterr()
    assert [line.split(": ", 1)[1] for line in shown.out.splitlines()] == [
        "line 0",
        f"{tmp_path / 'log.txt'} cannot be written to ({reason}); the run goes on",
        *("line 1", "line 2"),
    ]
    assert shown.err == ""


def test_log_file_goes_on_in_a_folder_that_is_deleted_and_made_anew(tmp_path, capsys):
    folder = tmp_path / "run"
    for number in range(6):
        if number == 0:
            setup_logging(folder)
        if number == 1:
            shutil.rmtree(folder)
        if number in (3, 5):  # lines 1 and 2 have no folder; before line 5 the file alone is replaced
            folder.mkdir(exist_ok=True)
            (folder / "log.txt").unlink(missing_ok=True)
        logging.getLogger("atss_core.test").info("line %d", number)
        if number == 4:
            text = (folder / "log.txt").read_text()
            assert [line.split(": ", 1)[1] for line in text.splitlines()] == ["line 3", "line 4"]
    assert (folder / "log.txt").read_text().endswith(": line 5\n")
    shown = capsys.readouterr()
    assert shown.out.count("cannot be written to (No such file or directory); the run goes on") == 1
    assert shown.err == ""


def test_no_name_forges_a_log_line(tmp_path, capsys):
    setup_logging(tmp_path)
    name = "cat\n2026-01-01 00:00:00 INFO: forged\r\x1b[2K\u202e\ud800"
    logging.getLogger("atss_core.test").info("class %s", name)
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert first.endswith(" INFO: class cat")
    assert second == "    2026-01-01 00:00:00 INFO: forged\\r\\x1b[2K\\u202e\\ud800"
    assert capsys.readouterr().out.splitlines() == [first, second]
