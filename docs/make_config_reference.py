"""Write config.md, the reference of all configuration keys, from the comments of defaults.py.

python docs/make_config_reference.py            # writes it
python docs/make_config_reference.py --check    # fails if it is not current
"""

from __future__ import annotations

import argparse
import ast
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

Each key with its default and what it means. Keys marked **new** are not in the published implementation; all
others have its names and defaults. Sizes are in pixels unless a line says otherwise.

A key is set in a YAML file, or behind the flags of a command, which goes over the file:

    atss train --config-file atss_R_18_shapes SOLVER.BASE_LR 0.05 OUTPUT_DIR training_dir/slower

Values are Python literals; lists and tuples go in quotes (`SOLVER.STEPS "(400, 600)"`). A wrong key is
answered with the nearest that exist, and a value of another type or beyond its range is refused with the key
and the file; in a list the range holds for every number. `_BASE_: other.yaml` in a file
reads that file first. A run writes all that it used to `OUTPUT_DIR/config.yml`, which is a configuration file
again.
"""


@dataclass(frozen=True)
class Entry:
    """Keys that one comment explains, a row of the reference.

    Attributes:
        section: such as "MODEL.ATSS", empty for keys of the top level.
        keys: the names of the keys and their defaults, as they are written in the source.
        meaning: the comment.
    """

    section: str
    keys: dict[str, str]
    meaning: str


def read_entries(source: str) -> list[Entry]:
    """Return what ``get_cfg`` makes, in the order of the source."""
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return list(_entries_of(_returned(functions["get_cfg"]), "", functions, _comments(source)))


def _comments(source: str) -> dict[int, str]:
    """Return the comments that have a line of their own, by its number."""
    lines = iter(source.splitlines(keepends=True))
    tokens = tokenize.generate_tokens(lambda: next(lines, ""))
    return {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokens
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
    }


def _returned(function: ast.FunctionDef) -> ast.expr:
    value = next(node.value for node in function.body if isinstance(node, ast.Return))
    if value is None:
        raise ValueError(f"{function.name} must return a Node")
    return value


def _entries_of(
    node: ast.expr,
    section: str,
    functions: dict[str, ast.FunctionDef],
    comments: dict[int, str],
    meaning: str = "",
) -> Iterator[Entry]:
    """Walk through ``Node({...})``, with the comment that stands above all of it."""
    entry = Entry(section, {}, meaning)
    for key, value in _items(node, functions):
        name, above = str(key.value), _comment_above(key.lineno, comments)
        if above or _is_section(value):
            if entry.keys:
                yield entry
            entry = Entry(section, {}, above)
        if _is_section(value):
            yield from _entries_of(value, f"{section}.{name}".lstrip("."), functions, comments, above)
            entry = Entry(section, {}, "")
        else:
            entry.keys[name] = "{}" if isinstance(value, ast.Call) else ast.unparse(value)
    if entry.keys:
        yield entry


def _items(node: ast.expr, functions: dict[str, ast.FunctionDef]) -> list[tuple[ast.Constant, ast.expr]]:
    """Return keys and values of ``Node({...})``, or of the function that is called there."""
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in functions:
            return _items(_returned(functions[name]), functions)
        case ast.Call(func=ast.Name(id="Node" | "Config"), args=[ast.Dict(keys, values)]):
            pairs = zip(keys, values, strict=True)
            return [(key, value) for key, value in pairs if isinstance(key, ast.Constant)]
    raise ValueError(
        f"{SOURCE.name} must be made of Node({{...}}) and functions that return one, got {ast.unparse(node)}"
    )


def _is_section(value: ast.expr) -> bool:
    """Tell whether a value is a section with keys; REGISTER is empty and thereby a key itself."""
    return isinstance(value, ast.Call) and (bool(value.args) or ast.unparse(value.func) != "Node")


def _comment_above(line: int, comments: dict[int, str]) -> str:
    """Take the comment above a line, so that nothing else there gets it as well."""
    words: list[str] = []
    while (line := line - 1) in comments:
        words.insert(0, comments.pop(line))
    return " ".join(words)


def make_reference(source: str) -> str:
    """Return the text of the reference."""
    entries = read_entries(source)
    leaves = {name for entry in entries for name in entry.keys}
    parts = [HEADER]
    for section in dict.fromkeys(entry.section for entry in entries):
        rows = [_row(entry, leaves) for entry in entries if entry.section == section]
        title = f'## {section or "Top level"}\n\n<div class="keys" markdown>\n'
        head = ["| key | default | range | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([title, *head, *rows, "\n</div>\n"]))
    return "\n".join(parts)


def _row(entry: Entry, leaves: set[str]) -> str:
    names = "<br>".join(f"`{name}`" for name in entry.keys)
    defaults = "<br>".join(f"`{value}`" for value in entry.keys.values())
    ranges = "<br>".join(_range(f"{entry.section}.{name}".lstrip(".")) for name in entry.keys)
    return f"| {names} | {defaults} | {ranges} | {_markdown(entry.meaning, leaves)} |"


def _range(key: str) -> str:
    return f"`{str(LIMITS[key]).removeprefix('in ')}`" if key in LIMITS else ""


def _markdown(comment: str, leaves: set[str]) -> str:
    """Mark keys and literals as code, and what is new in bold."""
    comment = comment.replace("|", "\\|").replace("<", "&lt;").replace("(new)", "**new**")
    words = r'"[^"\s]+"|(?<![\w/.])[A-Z][A-Z_.\d]*[A-Z\d](?![\w/])|\w+://[\w.]+\w'

    def mark(match: re.Match[str]) -> str:
        word = match[0]
        is_code = not word[0].isupper() or word.rpartition(".")[2] in leaves
        return f"`{word}`" if is_code else word

    return re.sub(words, mark, comment)


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
