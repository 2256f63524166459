"""Output of commands to consoles of any encoding, and to closed, full and unread ones."""

import subprocess
import sys

import pytest

from atss_core.cli.console import console
from tests.golden import ROOT

PROGRAM = """
import sys
from atss_core.cli.console import console
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
def test_characters_that_the_encoding_lacks_are_escaped(encoding, shown):
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
def test_broken_streams_end_the_command_or_lose_text(redirection, line, code, error, unbuffered):
    done = shell(redirection, line, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert error in done.stderr


def test_errors_of_a_command_pass_and_the_streams_are_restored():
    before = sys.stdout, sys.stderr
    with pytest.raises(OSError, match="another"), console():
        raise OSError("another")
    assert (sys.stdout, sys.stderr) == before
