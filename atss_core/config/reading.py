"""Read text and YAML files from users: each error is one line that names the file."""

from __future__ import annotations

import os
import reprlib
import stat
from pathlib import Path
from typing import Any

import yaml

# Far above what people write. Aliases of aliases can turn a few lines into gigabytes.
MAX_DEPTH = 50
MAX_REPEATED = 10_000

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxlevel = 3


def shorten(value: object) -> str:
    """Return the ``repr`` of a value, cut to a length that suits an error message."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return f"a value of type {type(value).__name__} with very many digits"


def check_regular(path: Path) -> None:
    """Check that a path is a regular file: reading a pipe or a device may never end.

    Raises:
        FileNotFoundError: if there is none, such as for a broken or circular link.
        ValueError: for a folder, pipe, device or socket.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError as error:  # ELOOP and ENAMETOOLONG as well
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    if kind != stat.S_IFREG:
        raise ValueError(f"{path}: expected a file, got {_KINDS.get(kind, 'a device')}")


def read_text(file: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it has another encoding or is no regular file.
    """
    check_regular(file)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def read_yaml(file: Path, example: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, described by ``example`` in the error message.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file, has a key twice, is nested too deeply or has too many aliases.
    """
    text = read_text(file)
    try:
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{file} is not valid YAML: {_one_line(error.problem)}{line}") from error
    # PyYAML raises these for a day 32, a control character, a number of 5,000 digits and "!!bool maybe".
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{file} must hold {example}, got {type(tree).__name__}")
    return tree


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits for depth and aliases, and without duplicate keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = self._repeated = 0
        self._sizes: dict[int, int] = {}  # id of a complete node -> number of nodes in it

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
                raise _fault(f"alias *{event.anchor} repeats the node around it", event.start_mark)
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
                problem = f"{shorten(key.value)} is given twice, in lines {lines[name]} and {line}"
                raise _fault(f"{problem}; remove one", None)
            lines[name] = line
        return node


def _fault(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
