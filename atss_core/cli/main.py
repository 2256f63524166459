"""The ``atss`` command: its first argument names a command, the others go to it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from atss_core import __version__
from atss_core.cli.console import console
from atss_core.cli.parser import did_you_mean
from atss_core.utils.text import printable

# command -> (module in atss_core.cli, purpose). Imported when needed: PyTorch takes seconds.
COMMANDS = {
    "quickstart": ("quickstart", "write a small dataset, train on it, evaluate, and draw detections"),
    "train": ("train", "train a detector, or resume a run that stopped"),
    "test": ("evaluate", "evaluate a detector with the metrics of COCO and VOC, and write a report"),
    "demo": ("demo", "draw detections in images, videos or the stream of a camera"),
    "check": ("check", "find faults of datasets before training"),
    "assign": ("assign", "show which anchors are positive for each object, by ATSS and by other assigners"),
    "plot": ("plot", "draw the curves of training runs side by side"),
    "export": ("export", "write a detector as ONNX, OpenVINO or torch.export, and verify the file"),
    "doctor": ("doctor", "report versions, devices and operators, with remedies for what is missing"),
    "remove-solver-states": ("remove_solver_states", "write only the weights of a checkpoint"),
}


@console()
def main(argv: Sequence[str] | None = None) -> None:
    """Run a command with command-line arguments, by default those of this process."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_help_text())
    elif name in ("-V", "--version", "version"):
        print(f"atss {__version__}")
    elif name in COMMANDS:
        _dispatch(name, arguments)
    else:
        print(
            f"error: there is no command {printable(name)}{did_you_mean(name, list(COMMANDS))}\n"
            "atss --help lists them",
            file=sys.stderr,
        )
        sys.exit(2)


def _dispatch(name: str, arguments: Sequence[str]) -> None:
    """Import a command and run it."""
    try:
        command = importlib.import_module(f"atss_core.cli.{COMMANDS[name][0]}").main
        if name == "doctor":  # also runs where PyTorch does not load
            return command(arguments)
        run = importlib.import_module("atss_core.cli.common").run
    except ImportError as error:
        sys.exit(f"error: {error}\natss doctor tells more")
    run(command, arguments)


def _help_text() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: atss COMMAND [arguments]",
            "\nTrain, evaluate and use detectors with Adaptive Training Sample Selection.\n",
            *lines,
            "\nexample:\n  atss train --config-file atss_R_50_FPN_1x OUTPUT_DIR training_dir/first",
            "\natss COMMAND --help lists the arguments of each.",
        ]
    )
