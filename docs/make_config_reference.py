"""Write config.md, the reference of all configuration keys, from the comments of defaults.py.

python docs/make_config_reference.py            # write it
python docs/make_config_reference.py --check    # fail if it is not current
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atss_core.config.values import LIMITS

FOLDER = Path(__file__).resolve().parent
SOURCE = FOLDER.parent / "atss_core" / "config" / "defaults.py"
REFERENCE = FOLDER / "config.md"

HEADER = """<!-- Written by make_config_reference.py from the comments of defaults.py: change those. -->

# Configuration keys

All keys with default, allowed range and meaning. Keys marked **new** are not in the published implementation;
all others have its names and defaults. Sizes are in pixels unless a line says otherwise.

Set a key in a YAML file, or after the flags of a command, which overrides the file:

    atss train --config-file atss_R_18_shapes SOLVER.BASE_LR 0.05 OUTPUT_DIR training_dir/slower

Values are Python literals; quote lists and tuples (`SOLVER.STEPS "(400, 600)"`). The error for an unknown key
lists the nearest valid keys. A value of another type or outside its range is an error that names the key and
the file; for a list the range applies to every number. `_BASE_: other.yaml` in a file reads that file first.
Each run writes its complete configuration to `OUTPUT_DIR/config.yml`, which is itself a configuration file.
"""


@dataclass(frozen=True)
class Entry:
    """A row of the reference: keys that share a comment.

    Attributes:
        section: such as "MODEL.ATSS", empty for the top level.
        keys: key names -> defaults as in the source.
        meaning: the comment.
    """

    section: str
    keys: dict[str, str]
    meaning: str


def read_entries(source: str) -> list[Entry]:
    """Return the keys of ``_DEFAULTS`` in the order of the source."""
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="_DEFAULTS")], value=ast.Dict() as defaults):
                return list(_entries_of(defaults, "", _comments(source)))
    raise ValueError(f"{SOURCE.name}: expected an assignment _DEFAULTS = {{...}}, got none. Restore it.")


def _comments(source: str) -> dict[int, str]:
    """Return the comments that have a line of their own, by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokens
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
    }


def _entries_of(node: ast.Dict, section: str, comments: dict[int, str], meaning: str = "") -> Iterator[Entry]:
    """Yield the entries of a section, whose first keys get the comment above the section."""
    entry = Entry(section, {}, meaning)
    for key, value in zip(node.keys, node.values, strict=True):
        assert isinstance(key, ast.Constant)
        is_section = isinstance(value, ast.Dict) and bool(value.keys)  # REGISTER is empty, so it is a key
        above = _comment_above(key.lineno, comments)
        if above or is_section:
            if entry.keys:
                yield entry
            entry = Entry(section, {}, above)
        if is_section:
            yield from _entries_of(value, f"{section}.{key.value}".lstrip("."), comments, above)
            entry = Entry(section, {}, "")
        else:
            entry.keys[str(key.value)] = ast.unparse(value)
    if entry.keys:
        yield entry


def _comment_above(line: int, comments: dict[int, str]) -> str:
    """Remove and return the comment above a line."""
    lines: list[str] = []
    while (line := line - 1) in comments:
        lines.insert(0, comments.pop(line))
    return " ".join(lines)


def make_reference(source: str) -> str:
    """Return the text of the reference."""
    entries = read_entries(source)
    leaves = {name for entry in entries for name in entry.keys}
    sections = [HEADER]
    for section in dict.fromkeys(entry.section for entry in entries):
        rows = [_row(entry, leaves) for entry in entries if entry.section == section]
        title = f'## {section or "Top level"}\n\n<div class="keys" markdown>\n'
        head = ["| key | default | range | meaning |", "|---|---|---|---|"]
        sections.append("\n".join([title, *head, *rows, "\n</div>\n"]))
    return "\n".join(sections)


def _row(entry: Entry, leaves: set[str]) -> str:
    names = "<br>".join(f"`{name}`" for name in entry.keys)
    defaults = "<br>".join(f"`{value}`" for value in entry.keys.values())
    ranges = "<br>".join(_range(f"{entry.section}.{name}".lstrip(".")) for name in entry.keys)
    return f"| {names} | {defaults} | {ranges} | {_markdown(entry.meaning, leaves)} |"


def _range(key: str) -> str:
    return f"`{str(LIMITS[key]).removeprefix('in ')}`" if key in LIMITS else ""


def _markdown(comment: str, leaves: set[str]) -> str:
    """Format keys and literals as code, and the mark of new keys in bold."""
    comment = comment.replace("|", "\\|").replace("<", "&lt;").replace("(new)", "**new**")
    pattern = r'"[^"\s]+"|(?<![\w/.])[A-Z][A-Z_.\d]*[A-Z\d](?![\w/])|\w+://[\w.]+\w'

    def mark(match: re.Match[str]) -> str:
        word = match[0]
        is_code = not word[0].isupper() or word.rpartition(".")[2] in leaves
        return f"`{word}`" if is_code else word

    return re.sub(pattern, mark, comment)


def main() -> None:
    """Write the reference, or check it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the reference is not current"
    )
    is_check = parser.parse_args().check
    text = make_reference(SOURCE.read_text(encoding="utf-8"))
    if not is_check:
        REFERENCE.write_text(text, encoding="utf-8")
    elif not REFERENCE.is_file() or REFERENCE.read_text(encoding="utf-8") != text:
        parser.exit(1, f"{REFERENCE} is not current; run python docs/make_config_reference.py\n")


if __name__ == "__main__":
    main()
