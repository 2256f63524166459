"""Error handling and common flags of the commands."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from yacs.config import CfgNode

from atss_core.cli.console import console
from atss_core.cli.parser import CommandParser
from atss_core.config import load_cfg
from atss_core.engine import TerminatedError
from atss_core.utils import dist
from atss_core.utils.text import printable

logger = logging.getLogger(__name__)

# User errors. PyTorch raises RuntimeError for internal faults, so it is not one of them.
USER_ERRORS = (ValueError, OSError, ArithmeticError)


@console()
def run(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Run a command; a user error ends in one line and status 2.

    Its traceback goes to the log file, and ``ATSS_TRACEBACK=1`` shows it.
    """
    try:
        command(argv)
        dist.stop_process_group()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except TerminatedError as stop:
        if dist.is_main():
            print(stop, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)  # as a shell reports it
    except (*USER_ERRORS, RuntimeError) as error:
        if error is getattr(sys.stdout, "error", None):
            raise  # for the console
        message = user_message(error)
        if os.environ.get("ATSS_TRACEBACK") or not message:
            raise
        logger.debug("stopped by an error", exc_info=True)  # in the log file alone
        line = " ".join(each.strip() for each in message.splitlines())
        print(f"error: {printable(line)}", file=sys.stderr)
        sys.exit(2)


def user_message(error: Exception) -> str:
    """Return the message of a user error; empty for a fault of the program."""
    if dist.is_lost_connection(error):
        return (
            f"another process of the job has ended, or has not answered for {dist.TIMEOUT}; see its error, "
            f"or whether the system killed it (out of memory?). The same command resumes from the last "
            f"checkpoint ({str(error).splitlines()[0]})"
        )
    if not isinstance(error, USER_ERRORS):
        return ""
    # PyTorch wraps the message of a data worker in the worker's traceback.
    text = str(error).rsplit(f"\n{type(error).__qualname__}: ", 1)[-1]
    return text.rsplit(f".{type(error).__name__}: ", 1)[-1].strip()


def add_config_arguments(parser: CommandParser, default: str | None = None) -> None:
    """Add ``--config-file``, and overrides in any position."""
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        default=default,
        required=default is None,
        help="YAML file, or the name of a shipped one" + (f" (default {default})" if default else ""),
    )
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="overrides of the configuration, such as SOLVER.BASE_LR 0.005",
    )


def add_launcher_argument(parser: CommandParser) -> None:
    """Accept the local rank in the forms that launchers have used; the environment has it as well."""
    parser.add_argument("--local_rank", "--local-rank", type=int, default=None, help=argparse.SUPPRESS)


def load_config(arguments: argparse.Namespace) -> CfgNode:
    """Load the configuration that the arguments name."""
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    return load_cfg(arguments.config_file, [each for each in arguments.opts if each != "--"])
