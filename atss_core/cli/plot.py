"""Draw the losses, learning rates and evaluations of training runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atss_core.cli.parser import CommandParser, expanded_path
from atss_core.utils.files import refuse_overwriting
from atss_core.visualization.charts import plot_runs

EXAMPLE = """
atss plot training_dir/first training_dir/second --output curves.png
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line arguments, by default those of this process."""
    parser = CommandParser("atss plot", __doc__, EXAMPLE)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=expanded_path, help="OUTPUT_DIR of a training")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=expanded_path,
        help="the image, .png, .svg or .pdf (default: curves.png in the folder of a single run, else here)",
    )
    arguments = parser.parse_args(argv)
    files = [_metrics_file(run) for run in dict.fromkeys(arguments.runs)]
    output = arguments.output or (files[0].parent if len(files) == 1 else Path()) / "curves.png"
    refuse_overwriting([output], files, "Give another --output.")
    plot_runs(name_runs(files), output)
    print(f"curves of {len(files)} runs are in {output}" if len(files) > 1 else f"curves are in {output}")


def _metrics_file(run: Path) -> Path:
    """Return the metrics of a run, given by its folder or by that file."""
    file = run / "metrics.jsonl" if run.is_dir() else run
    if not file.is_file():
        raise FileNotFoundError(
            f"no {file}: expected the OUTPUT_DIR of a training, with a metrics.jsonl after its first log line"
        )
    return file


def name_runs(files: Sequence[Path]) -> dict[str, Path]:
    """Name runs by the shortest ends of their folders' paths that tell them apart."""
    folders = [file.resolve().parent.parts for file in files]
    depth = 1
    while len({folder[-depth:] for folder in folders}) < len(set(folders)):
        depth += 1
    return {"/".join(folder[-depth:]): file for folder, file in zip(folders, files, strict=True)}
