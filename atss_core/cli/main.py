"""The ``atss`` command: its first word chooses what is done, the others say how."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from atss_core import __version__
from atss_core.cli.parser import did_you_mean
from atss_core.utils.console import console
from atss_core.utils.text import printable

# command -> (module in atss_core.cli, what it does). Imported when needed: PyTorch takes seconds.
COMMANDS = {
    "quickstart": ("quickstart", "make a small data set, train on it, test, and draw what is found"),
    "train": ("train", "train a detector, or go on where a run stopped"),
    "test": ("evaluate", "measure a detector with the metrics of COCO and VOC, and write a report"),
    "demo": ("demo", "draw what a detector finds in images, videos or before a camera"),
    "check": ("check", "find what is wrong with data sets, before training"),
    "assign": ("assign", "show which anchors each object gets, by ATSS and by other rules"),
    "plot": ("plot", "draw the curves of trainings side by side"),
    "export": ("export", "write a detector as ONNX, OpenVINO or torch.export, and prove it equal"),
    "doctor": ("doctor", "tell versions, devices and operators, and what to do about what is missing"),
    "remove-solver-states": ("remove_solver_states", "write the weights of a checkpoint alone"),
}


@console()
def main(argv: Sequence[str] | None = None) -> None:
    """Run a command with command-line words, by default those of this process."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text())
    elif name in ("-V", "--version", "version"):
        print(f"atss {__version__}")
    elif name in COMMANDS:
        dispatch(name, words)
    else:
        print(
            f"error: there is no command {printable(name)}{did_you_mean(name, list(COMMANDS))}\n"
            "atss --help lists them",
            file=sys.stderr,
        )
        sys.exit(2)


def dispatch(name: str, words: Sequence[str]) -> None:
    """Import a command and run it."""
    try:
        command = importlib.import_module(f"atss_core.cli.{COMMANDS[name][0]}").main
        if name == "doctor":  # must also run where what the others import does not load
            return command(words)
        run = importlib.import_module("atss_core.cli.common").run
    except ImportError as error:
        sys.exit(f"error: {error}\natss doctor tells more")
    run(command, words)


def help_text() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: atss COMMAND [words]",
            "\nTrain, test and use detectors whose positives are chosen by the statistics of each object.\n",
            *lines,
            "\nexample:\n  atss train --config-file atss_R_50_FPN_1x OUTPUT_DIR training_dir/first",
            "\natss COMMAND --help tells the words of each.",
        ]
    )
