"""Argument parser of the commands."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from atss_core.utils.text import printable


class CommandParser(argparse.ArgumentParser):
    """Parse the arguments of a command: flags, and any positional arguments between them.

    Args:
        name: as typed, such as "atss train".
        description: plain text.
        example: shown at the end of the help, one command per line.
    """

    def __init__(self, name: str, description: str | None, example: str) -> None:
        shown = "\n".join(f"  {line}" for line in example.strip().splitlines())
        super().__init__(
            prog=name,
            description=description,
            epilog=f"example:\n{shown}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.color = False  # Python 3.14 would colour the help with what the console escapes
        self._arguments: list[str] = []
        self._negative_number_matcher = re.compile(r"-[\d.]")  # argparse's own takes -1e-3 for a flag

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse arguments, by default those of this process; a wrong flag ends it with the nearest one."""
        self._arguments = list(sys.argv[1:] if args is None else args)
        return self.parse_intermixed_args(self._arguments)

    def error(self, message: str) -> NoReturn:
        """End the process with a message, and the nearest flags to those that do not exist."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for argument in self._arguments:
            name = argument.split("=", 1)[0]
            if name.startswith("--") and name != "--" and not any(flag.startswith(name) for flag in flags):
                message = f"there is no flag {name}{did_you_mean(name, flags)}"
                break
        self.exit(2, f"error: {printable(message)}\n{self.prog} --help shows the flags\n")


def expanded_path(text: str) -> Path:
    """Read a path; the shell does not expand a ``~`` behind ``=`` or in quotes."""
    return Path(os.path.expanduser(text))


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """Propose the choice most like a word, if one is close."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""
