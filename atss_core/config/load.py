"""Load a configuration, with errors that name the key, the nearest valid keys and the file."""

from __future__ import annotations

import ast
import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as Node

from atss_core.config.catalog import check_dataset_name
from atss_core.config.defaults import get_cfg
from atss_core.config.reading import read_yaml, shorten
from atss_core.config.shipped import find_config
from atss_core.config.values import check_value, leaves

_BASE = "_BASE_"
_MAX_BASES = 20
_GIVEN = "__given__"
# A section whose keys are the user's own.
_OPEN_SECTION = "DATASETS.REGISTER"


def load_cfg(file: str | Path | None = None, opts: Sequence[str] = ()) -> Node:
    """Read a YAML file and overrides over the defaults.

    A file may begin with ``_BASE_: other.yaml``, a path from its own folder: that file is read first, and the
    keys of this one go over it.

    Args:
        file: a YAML file, or the name of a shipped one (``find_config``), or None for the defaults alone.
        opts: overrides in pairs, as on the command line: ``["SOLVER.BASE_LR", "0.02", ...]``. Values are
            Python literals; what is not one is taken as a string.

    Returns:
        A frozen configuration; ``is_given`` tells which keys were set.

    Raises:
        ValueError: for an unknown key, a value that its key must not have (``config/values.py``), bad YAML or
            an odd number of ``opts``.
        FileNotFoundError: if there is no such file.
    """
    node, defaults = get_cfg(), get_cfg()
    given = set()
    for source, tree in _read_with_bases(find_config(file)) if file is not None else ():
        pairs = list(_flatten(tree, str(source)))
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:  # once with dots, "SOLVER.BASE_LR: 1"; the reader refuses the same text twice
                raise ValueError(f"{source}: {_shown(key)} is given twice, with and without dots; remove one")
        for key, value in pairs:
            _set(node, key, value, defaults, source=str(source))
            given.add(key)
    if len(opts) % 2:
        raise ValueError(
            f"overrides come in pairs KEY VALUE, but there are {len(opts)} words, the last is "
            f"{shorten(opts[-1])}"
        )
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        _set(node, key, _literal(text), defaults, source="the command line")
        given.add(key)
    node.__dict__[_GIVEN] = frozenset(given)  # beside the keys, where yacs keeps whether a node is frozen
    node.freeze()
    return node


def is_given(cfg: Node, key: str) -> bool:
    """Tell whether a file, the command line or a program has set a key, such as "MODEL.ATSS.NUM_CLASSES"."""
    value, default = cfg, get_cfg()
    for name in key.split("."):
        value, default = value[name], default[name]
    return key in cfg.__dict__.get(_GIVEN, ()) or value != default


def key_names() -> list[str]:
    """Return all keys, such as "SOLVER.BASE_LR"."""
    return [key for key, _ in leaves(get_cfg())]


def override(cfg: Node, key: str, value: Any) -> Node:
    """Return a copy of a configuration in which one more key is given.

    Raises:
        ValueError: if there is no such key, or it must not have that value.
    """
    node = cfg.clone()
    node.defrost()
    _set(node, key, value, get_cfg(), source="the program")
    node.__dict__[_GIVEN] = frozenset({*cfg.__dict__.get(_GIVEN, ()), key})
    node.freeze()
    return node


def _read_with_bases(file: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return a file and those it builds on, the lowest first."""
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
            if not value and key != _OPEN_SECTION:  # which every config.yml has
                raise ValueError(f"{source}: section {_shown(key)} is empty")
            yield from _flatten(value, source, f"{key}.")
        else:
            yield key, _literal(value) if isinstance(value, str) else value


def _literal(text: str) -> Any:
    """Read "(1, 2)" as a tuple and "0.01" as a float, and leave names as strings."""
    try:
        return ast.literal_eval(text)
    # The last three are for a list as a key of a mapping, and for thousands of brackets or signs.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _set(node: Node, key: str, value: Any, defaults: Node, source: str) -> None:
    if key == _OPEN_SECTION and value in (None, ""):
        return
    if key.startswith(f"{_OPEN_SECTION}."):
        own = key.removeprefix(f"{_OPEN_SECTION}.")
        check_dataset_name(own, f"{source}: {_OPEN_SECTION}")
        node.DATASETS.REGISTER[own] = check_value(value, "path/to/train.json@path/to/images", key, source)
        return
    *sections, leaf = key.split(".")
    parent, default = node, defaults
    for section in sections:
        parent = parent.get(section) if isinstance(parent, Node) else None
        default = default.get(section) if isinstance(default, Node) else None
    if not isinstance(parent, Node) or leaf not in parent:
        raise ValueError(f"{source}: unknown key {_shown(key)}{_nearest(node, key[:100])}")
    if isinstance(parent[leaf], Node):
        raise ValueError(
            f"{source}: {key} is a section, give one of its keys"
            f"{''.join(f', such as {name}' for name, _ in list(leaves(parent[leaf], key))[:1])}"
        )
    parent[leaf] = check_value(value, default[leaf], key, source)


def _shown(key: str) -> str:
    return key if len(key) <= 120 and key.isprintable() else shorten(key)


def _nearest(node: Node, key: str) -> str:
    """Propose the valid keys that look like ``key``, or end like it in another section."""
    keys = [name for name, _ in leaves(node)]
    leaf = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.75)
    by_leaf = {k: k.rsplit(".", 1)[-1] for k in keys}
    for name in difflib.get_close_matches(leaf, sorted(set(by_leaf.values())), n=2, cutoff=0.75):
        near += [k for k, last in by_leaf.items() if last == name and k not in near]
    return (
        f"; did you mean {' or '.join(near[:3])}?"
        if near
        else "; atss_core/config/defaults.py lists all keys"
    )
