"""What the commands share: their error handling, their common flags, and the start of a run."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from yacs.config import CfgNode

from atss_core.cli.console import console
from atss_core.cli.parser import CommandParser
from atss_core.config import load_cfg
from atss_core.engine import TerminatedError
from atss_core.engine.build import build_device
from atss_core.layers import ops_info
from atss_core.utils import dist
from atss_core.utils.env import environment_report, use_deterministic_algorithms
from atss_core.utils.logging import setup_logging
from atss_core.utils.text import printable

logger = logging.getLogger(__name__)

# What a user can cause raises one of these. A RuntimeError is PyTorch's word for everything else.
USER_ERRORS = (ValueError, OSError, ArithmeticError)


@console()
def run(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Run a command; what a user can cause ends in one line and status 2, not in a traceback.

    The log file gets the traceback, and ``ATSS_TRACEBACK=1`` shows it.
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
        line = " ".join(part.strip() for part in message.splitlines())
        print(f"error: {printable(line)}", file=sys.stderr)
        sys.exit(2)


def user_message(error: Exception) -> str:
    """Return what to tell the user about an error; nothing if it is a fault of the program."""
    if dist.is_lost_connection(error):
        return (
            f"another process of the job has ended, or has not answered for {dist.TIMEOUT}; see its error, "
            f"or whether the system killed it (out of memory?). The same command goes on from the last "
            f"checkpoint ({str(error).splitlines()[0]})"
        )
    if not isinstance(error, USER_ERRORS):
        return ""
    # PyTorch wraps the message of a data worker in the worker's traceback.
    text = str(error).rsplit(f"\n{type(error).__qualname__}: ", 1)[-1]
    return text.rsplit(f".{type(error).__name__}: ", 1)[-1].strip()


def start(cfg: CfgNode) -> torch.device:
    """Choose the device, join the job of a launcher, and start logging to the console.

    From here on the run survives its terminal.
    """
    if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # data workers inherit that
    if cfg.DETERMINISTIC:
        use_deterministic_algorithms()
    device = dist.start_process_group(build_device(cfg))
    setup_logging()
    return device


def start_log(cfg: CfgNode, device: torch.device, log_file: str) -> None:
    """Log to ``OUTPUT_DIR/log_file`` as well, and first of all what the run runs on."""
    setup_logging(Path(cfg.OUTPUT_DIR), log_file)
    logger.info("%s; %s; %d processes", environment_report(device), ops_info(), dist.world_size())


def add_config_arguments(parser: CommandParser, default: str | None = None) -> None:
    """Add ``--config-file``, and overrides that stand anywhere."""
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
    """Accept the local rank in each of the forms that launchers have used; the environment has it as well."""
    parser.add_argument("--local_rank", "--local-rank", type=int, default=None, help=argparse.SUPPRESS)


def load_config(arguments: argparse.Namespace) -> CfgNode:
    """Load the configuration that the arguments name."""
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    return load_cfg(arguments.config_file, [word for word in arguments.opts if word != "--"])
