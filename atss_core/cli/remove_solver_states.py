"""Write the weights of a checkpoint alone, without what only resuming a training needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.checkpoint.download import is_url, locate
from atss_core.checkpoint.formats import to_safetensors
from atss_core.checkpoint.weights import weights_of
from atss_core.cli.parser import CommandParser, expanded_path
from atss_core.utils.files import atomic_write

EXAMPLE = """
atss remove-solver-states --model training_dir/atss_R_50_FPN_1x/model_final.pth
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
    parser = CommandParser("atss remove-solver-states", __doc__, EXAMPLE)
    parser.add_argument("file", nargs="?", metavar="FILE", help="the checkpoint or its URL")
    parser.add_argument("--model", metavar="FILE", help="the same")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=expanded_path,
        help="new file, .pth or .safetensors (default: FILE with _wo_solver_states before its suffix; in the "
        "working folder for a URL)",
    )
    arguments = parser.parse_args(argv)
    if bool(arguments.model) == bool(arguments.file):
        parser.error("expected one checkpoint, as FILE or behind --model")
    name = arguments.model or arguments.file
    source = locate(name)
    folder = Path() if is_url(name) else source.parent
    remove_solver_states(
        source, arguments.output or folder / f"{source.stem}_wo_solver_states{source.suffix}"
    )


def remove_solver_states(source: Path, output: Path) -> None:
    """Write the weights of ``source``, averaged ones if it has them, and its class names to ``output``.

    Raises:
        ValueError: if there is an ``output`` already, or ``source`` is no checkpoint.
        FileNotFoundError: if there is no ``source``.
    """
    if output.exists():
        raise ValueError(f"{output} exists already; remove it, or choose another file with --output")
    checkpoint = read_checkpoint(source)
    kept: dict[str, Any] = {"model": weights_of(checkpoint)}
    if "class_names" in checkpoint:
        kept["class_names"] = checkpoint["class_names"]
    with atomic_write(output) as file:
        if output.suffix == ".safetensors":
            file.write(to_safetensors(kept["model"], kept.get("class_names")))
        else:
            torch.save(kept, file)
    print(f"{source}: {megabytes(source)}\n{output}: {megabytes(output)}")


def megabytes(path: Path) -> str:
    """Write the size of a file."""
    return f"{path.stat().st_size / 1e6:.1f} MB"
