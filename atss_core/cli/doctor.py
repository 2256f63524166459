"""Report what is installed, what is missing, and what to do: versions, devices, operators, data, extras."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from atss_core.apps.doctor import examine
from atss_core.cli.parser import CommandParser

EXAMPLE = """
atss doctor
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line arguments, by default those of this process.

    Ends the process with status 1 if something is broken.
    """
    CommandParser("atss doctor", __doc__, EXAMPLE).parse_args(argv)
    if not examine():
        sys.exit(1)
