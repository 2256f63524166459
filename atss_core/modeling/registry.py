"""Builders that YAML picks by a string."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from atss_core.utils.text import shorten


class Registry:
    """Named builders of one kind.

    Args:
        key: the configuration key that holds the name, for error messages.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._builders: dict[str, Callable[..., Any]] = {}

    def register(self, *names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that registers a builder under one or several names.

        Raises:
            ValueError: if a name is taken.
        """

        def decorate(builder: Callable[..., Any]) -> Callable[..., Any]:
            for name in names:
                if name in self._builders:
                    raise ValueError(f"{self.key} {name!r} is registered already, choose another name")
                self._builders[name] = builder
            return builder

        return decorate

    def build(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the builder of ``name``.

        Raises:
            ValueError: if there is none; the choices and the nearest one are listed.
        """
        if name not in self._builders:
            near = difflib.get_close_matches(name, self._builders, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{self.key} must be one of {', '.join(self._builders)}, got {shorten(name)}{hint}"
            )
        return self._builders[name](*args, **kwargs)
