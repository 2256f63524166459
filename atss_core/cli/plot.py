"""Draw the losses, learning rates and tests of trainings side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atss_core.cli.parser import CommandParser, expanded_path
from atss_core.utils.files import refuse_overwriting
from atss_core.visualization.run_curves import names_of, plot_runs

EXAMPLE = """
atss plot training_dir/first training_dir/second --output curves.png
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
    parser = CommandParser("atss plot", __doc__, EXAMPLE)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=expanded_path, help="OUTPUT_DIR of a training")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=expanded_path,
        help="the image, .png, .svg or .pdf (default: curves.png in the folder of a single run, else here)",
    )
    arguments = parser.parse_args(argv)
    files = [metrics_file(run) for run in dict.fromkeys(arguments.runs)]
    output = arguments.output or (files[0].parent if len(files) == 1 else Path()) / "curves.png"
    refuse_overwriting([output], files, "Give another --output.")
    plot_runs(names_of(files), output)
    print(f"curves of {len(files)} runs are in {output}" if len(files) > 1 else f"curves are in {output}")


def metrics_file(run: Path) -> Path:
    """Return the metrics of a run, given by its folder or by that file.

    Raises:
        FileNotFoundError: if there are none.
    """
    file = run / "metrics.jsonl" if run.is_dir() else run
    if not file.is_file():
        raise FileNotFoundError(
            f"no {file}: expected the OUTPUT_DIR of a training, with a metrics.jsonl after its first log line"
        )
    return file
