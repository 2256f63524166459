"""Write README.md, the index of these configurations, from the YAML files alone.

python configs/paper/make_index.py            # writes it
python configs/paper/make_index.py --check    # fails if it is not current
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atss_core.config import load_cfg

FOLDER = Path(__file__).resolve().parent
PUBLISHED = FOLDER.parent / "atss"
INDEX = FOLDER / "README.md"

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Each file has its own, or is measured by it; so they say nothing about the model.
NOT_COMPARED = ("OUTPUT_DIR", "TEST.EXPECTED_RESULTS")
# How a file says which row it is: "# Table 4, row 1: k = 3".
ROW = re.compile(r"^# Table (\d+), row (\d+): (.+)$", re.MULTILINE)

TITLES = {
    1: "From RetinaNet to FCOS, one step a row",
    2: "How positives are chosen (IoU, or spatial and scale constraint) and what boxes are regressed from",
    3: "ATSS against what it replaces",
    4: "Candidates a level (k)",
    5: "Side of the anchors",
    6: "Aspect ratio of the anchors",
    7: "Several anchors per location",
    8: "Other backbones and longer training, on test-dev",
}

HEADER = """<!-- Written by make_index.py from the YAML files here; change those, and run it again. -->

# The tables of the paper

One configuration for each distinct row of Tables 1 to 8 of *Bridging the Gap Between Anchor-based and
Anchor-free Detection via Adaptive Training Sample Selection* (arXiv 1912.02424). A row that several tables
show is one file.

**The numbers are the paper's.** This project has not trained on COCO and has measured none of them. They are
AP in percent on COCO val2017; those of Table 8 are on test-dev, which has no public annotations: there a test
writes `bbox.json` for the evaluation server. A line shows all that the paper says about its configuration,
also where that table has the AP alone.

Train and test one from the root of the project, with COCO in `datasets/coco`:

    python tools/train_net.py --config-file configs/paper/atss_k3.yaml

The schedule is meant for 16 images a batch. At its end a run compares what it measured with
`TEST.EXPECTED_RESULTS`, which holds the numbers below with a standard deviation of 0.2 points. That is a
tolerance of ours for the noise between seeds, not a number of the paper; what is off by more than
`TEST.EXPECTED_RESULTS_SIGMA_TOL` (4) of these is reported.

The last column tells how a file differs from its base: the published
[atss_R_50_FPN_1x](../atss/atss_R_50_FPN_1x.yaml), or in Table 8 the file that is named there.
"""


@dataclass(frozen=True)
class Entry:
    """A row of the paper.

    Attributes:
        table: its number.
        row: its number in the table, from 1.
        label: what the row is.
        file: its configuration.
    """

    table: int
    row: int
    label: str
    file: Path


def read_entries() -> list[Entry]:
    """Return the rows that the files here name, in the paper's order.

    Raises:
        ValueError: if a file names no row, or two files the same.
    """
    entries: dict[tuple[int, int], Entry] = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        rows = ROW.findall(file.read_text(encoding="utf-8"))
        if not rows:
            raise ValueError(f"{file.name} must begin with lines like '# Table 4, row 1: k = 3', got none")
        for table, row, label in rows:
            entry = Entry(int(table), int(row), label, file)
            other = entries.setdefault((entry.table, entry.row), entry)
            if other is not entry:
                raise ValueError(
                    f"Table {table}, row {row} must be one file, got {other.file.name} and {file.name}"
                )
    return [entries[key] for key in sorted(entries)]


def published_base(file: Path) -> Path:
    """Return the published configuration that a file builds on, directly or not."""
    while file.parent != PUBLISHED:
        file = (file.parent / yaml.safe_load(file.read_text(encoding="utf-8"))["_BASE_"]).resolve()
    return file


def published_numbers(file: Path) -> dict[str, float]:
    """Return the paper's numbers of a configuration in percent, by metric."""
    return {metric: 100 * mean for _, metric, mean, _ in load_cfg(file).TEST.EXPECTED_RESULTS}


def differences(file: Path) -> dict[str, Any]:
    """Return the keys, with their values, by which a configuration differs from its published base."""
    base = dict(_flatten(load_cfg(published_base(file))))
    return {
        key: value
        for key, value in _flatten(load_cfg(file))
        if key not in NOT_COMPARED and value != base[key]
    }


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def make_index() -> str:
    """Return the text of the index."""
    entries = read_entries()
    parts = [HEADER]
    for table in sorted({entry.table for entry in entries}):
        rows = [_line(entry) for entry in entries if entry.table == table]
        parts.append("\n".join([f"## Table {table}. {TITLES[table]}\n", *_heading(), *rows, ""]))
    return "\n".join(parts)


def _heading() -> list[str]:
    columns = ("row", "configuration", *METRICS, "differs from its base in")
    return [f"| {' | '.join(columns)} |", "|---|---|" + "--:|" * len(METRICS) + "---|"]


def _line(entry: Entry) -> str:
    numbers = published_numbers(entry.file)
    columns = [
        entry.label,
        f"[{entry.file.stem}]({entry.file.name})",
        *(f"{numbers[metric]:.1f}" if metric in numbers else "" for metric in METRICS),
        _describe(entry),
    ]
    return f"| {' | '.join(columns)} |"


def _describe(entry: Entry) -> str:
    changes = [f"`{key} {_literal(value)}`" for key, value in differences(entry.file).items()]
    if entry.table != 8:
        return ", ".join(changes)
    base = published_base(entry.file)
    link = f"[{base.stem}]({os.path.relpath(base, FOLDER)})"
    return f"{link}: {', '.join(changes)}"


def _literal(value: Any) -> str:
    """Write a value as on the command line."""
    return value if isinstance(value, str) else repr(value)


def main() -> None:
    """Write the index, or check it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the index is not current"
    )
    is_check = parser.parse_args().check
    text = make_index()
    if not is_check:
        INDEX.write_text(text, encoding="utf-8")
    elif not INDEX.is_file() or INDEX.read_text(encoding="utf-8") != text:
        parser.exit(1, f"{INDEX} is not current; run python configs/paper/make_index.py\n")


if __name__ == "__main__":
    main()
