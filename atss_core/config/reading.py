"""Read text and YAML files that may be anything: each fault is one line that names the file."""

from __future__ import annotations

import os
import reprlib
import stat
from pathlib import Path
from typing import Any

import yaml

# A hand-written file is far below these. Aliases count with all that they repeat, which is how a few lines
# become gigabytes.
MAX_DEPTH = 50
MAX_REPEATED = 10_000

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxlevel = 3


def shorten(value: object) -> str:
    """Return the ``repr`` of a value, cut to what fits into an error message."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write whole numbers of more than 4,300 digits
        return f"a value of type {type(value).__name__} with very many digits"


def check_regular(path: Path) -> None:
    """Refuse to open what is no plain file: reading a pipe or a device may never end.

    Raises:
        FileNotFoundError: if there is nothing, or a link that leads nowhere or to itself.
        ValueError: for a folder, pipe, device or socket.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise
    except OSError as error:  # such as a loop of links
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a pipe",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        raise ValueError(f"{path}: expected a file, got {kinds.get(stat.S_IFMT(mode), 'something else')}")


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is in another encoding, or no plain file.
    """
    check_regular(file)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def read_yaml(file: Path, example: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        file: to read.
        example: keys that it could hold, for the message.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file, gives a key twice, nests too deeply or repeats too much by aliases.
    """
    text = read_text(file)
    try:
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{file} is not valid YAML: {_one_line(error.problem)}{line}") from error
    # What PyYAML raises for a day 32, a control character, a number of 5,000 digits or "!!bool maybe".
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{file} must hold {example}, got {type(tree).__name__}")
    return tree


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which itself keeps the last of equal keys and follows aliases without end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = self._repeated = 0
        self._sizes: dict[int, int] = {}  # nodes that are complete, with all in them

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        before = self._count
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _fault(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _fault(f"alias *{event.anchor} repeats what it is in", event.start_mark)
            self._count += self._sizes[id(node)]
            self._repeated += self._sizes[id(node)]
            if self._repeated > MAX_REPEATED:
                raise _fault(f"aliases repeat more than {MAX_REPEATED} values", event.start_mark)
        else:
            self._count += 1
            self._sizes[id(node)] = self._count - before
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key), key.start_mark.line + 1
            if name in lines:
                raise _fault(
                    f"{shorten(key.value)} is given twice, in lines {lines[name]} and {line}; remove one",
                    None,
                )
            lines[name] = line
        return node


def _fault(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
