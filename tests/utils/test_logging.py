"""The log on the console and in a file: full disks, deleted folders and forged lines."""

import logging
import shutil
import sys

import pytest

from atss_core.cli.console import console
from atss_core.utils.logging import setup_logging

needs_dev_full = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")


def test_the_log_goes_to_console_and_file(tmp_path, capsys):
    setup_logging(tmp_path)
    logging.getLogger("atss_core.somewhere").info("hello")
    setup_logging()
    assert "INFO: hello" in capsys.readouterr().out
    assert "INFO: hello" in (tmp_path / "log.txt").read_text()


@needs_dev_full
def test_the_log_file_continues_after_the_console_breaks(tmp_path, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with console():
            setup_logging(tmp_path)
            for number in range(3):
                logging.getLogger("atss_core.test").info("line %d", number)
            print("discarded")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "standard output cannot be written to (No space left on device); the run goes on",
        *("line 0", "line 1", "line 2"),
    ]


@needs_dev_full
def test_a_full_disk_is_reported_once(tmp_path, capsys):
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
def test_a_log_file_that_cannot_be_opened_is_reported_once(spoil, reason, tmp_path, capsys):
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


def test_the_log_file_is_created_again_in_a_recreated_folder(tmp_path, capsys):
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


def test_names_cannot_forge_log_lines(tmp_path, capsys):
    setup_logging(tmp_path)
    name = "cat\n2026-01-01 00:00:00 INFO: forged\r\x1b[2K\u202e\ud800"
    logging.getLogger("atss_core.test").info("class %s", name)
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert first.endswith(" INFO: class cat")
    assert second == "    2026-01-01 00:00:00 INFO: forged\\r\\x1b[2K\\u202e\\ud800"
    assert capsys.readouterr().out.splitlines() == [first, second]
