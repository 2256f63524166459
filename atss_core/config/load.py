"""Load a configuration, with errors that name the key, the nearest valid keys and the file."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as Node

from atss_core.config.defaults import get_cfg
from atss_core.config.reading import read_yaml, shorten
from atss_core.config.shipped import find_config

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
        ValueError: for an unknown key, a value of the wrong type, bad YAML or an odd number of ``opts``.
        FileNotFoundError: if there is no such file.
    """
    node, defaults = get_cfg(), get_cfg()
    given = set()
    for source, tree in _read_with_bases(find_config(file)) if file is not None else ():
        for key, value in _flatten(tree, str(source)):
            _set(node, key, value, defaults, source=str(source))
            given.add(key)
    if len(opts) % 2:
        raise ValueError(
            f"overrides come in pairs KEY VALUE, but there are {len(opts)} words, the last is {opts[-1]!r}"
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
    return _keys(get_cfg())


def override(cfg: Node, key: str, value: Any) -> Node:
    """Return a copy of a configuration in which one more key is given.

    Raises:
        ValueError: if there is no such key, or the value is of the wrong type.
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
                raise ValueError(f"{source}: section {key} is empty")
            yield from _flatten(value, source, f"{key}.")
        else:
            yield key, _literal(value) if isinstance(value, str) else value


def _literal(text: str) -> Any:
    """Read "(1, 2)" as a tuple and "0.01" as a float, and leave names as strings."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _set(node: Node, key: str, value: Any, defaults: Node, source: str) -> None:
    if key == _OPEN_SECTION and value in (None, ""):
        return
    if key.startswith(f"{_OPEN_SECTION}."):
        own = key.removeprefix(f"{_OPEN_SECTION}.")
        node.DATASETS.REGISTER[own] = _coerce(value, "path/to/annotations.json@path/to/pictures", key, source)
        return
    *sections, leaf = key.split(".")
    parent, default = node, defaults
    for section in sections:
        parent = parent.get(section) if isinstance(parent, Node) else None
        default = default.get(section) if isinstance(default, Node) else None
    if not isinstance(parent, Node) or leaf not in parent:
        raise ValueError(f"{source}: unknown key {key}{_nearest(node, key)}")
    if isinstance(parent[leaf], Node):
        raise ValueError(
            f"{source}: {key} is a section, give one of its keys"
            f"{''.join(f', such as {name}' for name in _keys(parent[leaf], key)[:1])}"
        )
    parent[leaf] = _coerce(value, default[leaf], key, source)


def _nearest(node: Node, key: str) -> str:
    """Propose the valid keys that look like ``key``, or end like it in another section."""
    keys = _keys(node)
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


def _keys(node: Node, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in node.items():
        key = f"{prefix}.{name}" if prefix else name
        keys += _keys(value, key) if isinstance(value, Node) else [key]
    return keys


def _coerce(value: Any, default: Any, key: str, source: str) -> Any:
    """Bring a value to the type of the default: lists and tuples are one, a whole number may be a float."""
    if key in _ONE_OR_MORE and isinstance(value, str):
        value = (value,)
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        if default:  # an empty default says nothing about its elements
            value = [
                tuple(_coerce(v, float(default[0]), f"{key}[{i}]", source) for v in item)
                if key in _NESTED and isinstance(item, (list, tuple))
                else _coerce(item, default[0], f"{key}[{i}]", source)
                for i, item in enumerate(value)
            ]
        return type(default)(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    # In Python a bool is an int and a whole default may be half of a pair of numbers (BIAS_LR_FACTOR 1.5).
    if isinstance(default, str) and value is None:
        return ""
    if type(value) is type(default) or (
        type(default) is int and isinstance(value, float) and key in _NUMBERS
    ):
        return value
    raise ValueError(f"{source}: {key} must be {_describe(default)}, got {value!r} ({type(value).__name__})")


# Keys whose elements may be lists themselves: several anchor sizes on a level.
_NESTED = ("MODEL.ATSS.ANCHOR_SIZES",)

# Lists that may be given as their only element.
_ONE_OR_MORE = ("DATASETS.TRAIN", "DATASETS.TEST")

# Keys whose published default is a whole number although any number makes sense.
_NUMBERS = ("SOLVER.BIAS_LR_FACTOR", "SOLVER.WEIGHT_DECAY_BIAS", "TEST.EXPECTED_RESULTS_SIGMA_TOL")


def _describe(default: Any) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    if isinstance(default, (list, tuple)):
        inner = f" with elements like {default[0]!r}" if default else ""
        return f"a list{inner}, such as {tuple(default)!r}"
    return f"{names[type(default)]}, such as {default!r}"
