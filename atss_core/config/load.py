"""Load a configuration; errors name the key, the nearest valid keys and the file."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as Node

from atss_core.config.catalog import check_dataset_name, find_config
from atss_core.config.defaults import get_cfg
from atss_core.config.reading import read_yaml, shorten
from atss_core.config.values import check_value, leaves

_BASE = "_BASE_"
_MAX_BASES = 20
_GIVEN = "__given__"
_OPEN_SECTION = "DATASETS.REGISTER"  # its keys are chosen by the user
_LEAVES = dict(leaves(get_cfg()))
_SECTIONS = {_OPEN_SECTION, *(key[:i] for key in _LEAVES for i, letter in enumerate(key) if letter == ".")}


def load_cfg(file: str | Path | None = None, opts: Sequence[str] = ()) -> Node:
    """Load the defaults, then a YAML file, then overrides.

    A file may contain ``_BASE_: other.yaml``, a path relative to its own folder. That file is read first, and
    this one overrides its keys.

    Args:
        file: a YAML file, the name of a shipped one (``find_config``), or None for the defaults only.
        opts: keys and values, as on the command line: ``["SOLVER.BASE_LR", "0.02", ...]``. Values are Python
            literals, or else strings.

    Returns:
        A frozen configuration; ``is_given`` tells which keys were set.

    Raises:
        ValueError: for an unknown key, an invalid value (``config/values.py``), invalid YAML or an odd number
            of ``opts``.
        FileNotFoundError: if there is no such file.
    """
    node = get_cfg()
    given: set[str] = set()
    for source, tree in _read_with_bases(find_config(file)) if file is not None else ():
        keys = set()
        for key, value in _flatten(tree, str(source)):
            if key in keys:  # one is "SOLVER.BASE_LR: 1", with dots; ``read_yaml`` refuses equal keys
                raise ValueError(f"{source}: {_shown(key)} is given twice, with and without dots; remove one")
            _set(node, key, value, source=str(source))
            keys.add(key)
        given |= keys
    if len(opts) % 2:
        raise ValueError(
            f"overrides come in pairs KEY VALUE, but there are {len(opts)} arguments, the last is "
            f"{shorten(opts[-1])}"
        )
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        _set(node, key, _literal(text), source="the command line")
        given.add(key)
    return _frozen(node, given)


def is_given(cfg: Node, key: str) -> bool:
    """Tell whether a file, the command line or a program set a key, such as "MODEL.ATSS.NUM_CLASSES"."""
    return key in cfg.__dict__.get(_GIVEN, ()) or reduce(getitem, key.split("."), cfg) != _LEAVES[key]


def key_names() -> list[str]:
    """Return all keys, such as "SOLVER.BASE_LR"."""
    return list(_LEAVES)


def override(cfg: Node, key: str, value: Any) -> Node:
    """Return a frozen copy of a configuration with another value of a key.

    Raises:
        ValueError: if the key is unknown or the value invalid.
    """
    node = cfg.clone()
    node.defrost()
    _set(node, key, value, source="the program")
    return _frozen(node, {*cfg.__dict__.get(_GIVEN, ()), key})


def _frozen(node: Node, given: set[str]) -> Node:
    node.__dict__[_GIVEN] = frozenset(given)  # an attribute, like yacs's mark of frozen nodes
    node.freeze()
    return node


def _read_with_bases(file: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the contents of a file and its chain of bases, starting with the last base."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    base: Path | None = file
    while base is not None:
        if not os.path.lexists(base):
            raise FileNotFoundError(f"no configuration file {base!s:.400}; correct the path in {_BASE}")
        if any(os.path.realpath(base) == os.path.realpath(done) for done, _ in chain):
            raise ValueError(f"{chain[-1][0]}: {_BASE} {base} leads back to itself; correct the chain")
        if len(chain) > _MAX_BASES:
            raise ValueError(f"{file}: {_BASE} leads through more than {_MAX_BASES} files; shorten the chain")
        tree = read_yaml(base, "sections such as MODEL and SOLVER")
        chain.append((base, tree))
        name = tree.pop(_BASE, None)
        if name is not None and not isinstance(name, str):
            raise ValueError(f"{base}: {_BASE} must be the path of a YAML file, got {shorten(name)}")
        base = base.parent / os.path.expanduser(name) if name is not None else None
    return chain[::-1]


def _flatten(tree: dict[str, Any], source: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            if not value and key != _OPEN_SECTION:  # is empty in most files that ``dump`` writes
                raise ValueError(f"{source}: section {_shown(key)} is empty")
            yield from _flatten(value, source, f"{key}.")
        else:
            yield key, _literal(value) if isinstance(value, str) else value


def _literal(text: str) -> Any:
    """Read "(1, 2)" as a tuple and "0.01" as a float, and leave names as strings."""
    try:
        return ast.literal_eval(text)
    # TypeError: a list as a key of a dict. The last two: thousands of brackets or signs.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _set(node: Node, key: str, value: Any, source: str) -> None:
    if key == _OPEN_SECTION and value in (None, ""):
        return
    if key.startswith(f"{_OPEN_SECTION}."):
        own = key.removeprefix(f"{_OPEN_SECTION}.")
        check_dataset_name(own, f"{source}: {_OPEN_SECTION}")
        node.DATASETS.REGISTER[own] = check_value(value, "path/to/train.json@path/to/images", key, source)
        return
    if key in _SECTIONS:
        example = next((f", such as {name}" for name in _LEAVES if name.startswith(f"{key}.")), "")
        raise ValueError(f"{source}: {key} is a section, give one of its keys{example}")
    if key not in _LEAVES:
        raise ValueError(f"{source}: unknown key {_shown(key)}; {_nearest(key[:100])}")
    *sections, leaf = key.split(".")
    reduce(getitem, sections, node)[leaf] = check_value(value, _LEAVES[key], key, source)


def _shown(key: str) -> str:
    return key if len(key) <= 120 and key.isprintable() else shorten(key)


def _nearest(key: str) -> str:
    """Return a hint with the valid keys that resemble ``key``, or end with a name that resembles its last."""
    near = difflib.get_close_matches(key, _LEAVES, n=3, cutoff=0.75)
    last_names = {name: name.rsplit(".", 1)[-1] for name in _LEAVES}
    last = key.rsplit(".", 1)[-1]
    for match in difflib.get_close_matches(last, sorted(set(last_names.values())), n=2, cutoff=0.75):
        near += [name for name, last in last_names.items() if last == match and name not in near]
    return f"did you mean {' or '.join(near[:3])}?" if near else "atss_core/config/defaults.py lists all keys"
