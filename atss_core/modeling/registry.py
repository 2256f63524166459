"""Builders that YAML picks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from atss_core.utils.text import shorten

Builder = Callable[..., Any]


class Registry:
    """Named builders of one kind, to which a user's own file can add.

    Args:
        key: the configuration key that holds the name, for error messages.
        builders: those of this package.
    """

    def __init__(self, key: str, builders: Mapping[str, Builder] | None = None) -> None:
        self.key = key
        self.builders = dict(builders or {})

    def register(self, *names: str) -> Callable[[Builder], Builder]:
        """Return a decorator that registers a builder under one or several names.

        Raises:
            ValueError: if a name is taken.
        """

        def decorate(builder: Builder) -> Builder:
            for name in names:
                if name in self.builders:
                    raise ValueError(f"{self.key}: {name!r} is registered already. Choose another name.")
                self.builders[name] = builder
            return builder

        return decorate

    def build(self, name: str, *args: Any) -> Any:
        """Call the builder of ``name``.

        Raises:
            ValueError: for an unknown name, with the choices and the nearest of them.
        """
        if name not in self.builders:
            nearest = difflib.get_close_matches(name, self.builders, n=1)
            remedy = (
                f"Did you mean {nearest[0]!r}?" if nearest else "Choose one of them or register your own."
            )
            choices = ", ".join(self.builders)
            raise ValueError(f"{self.key}: expected one of {choices}, got {shorten(name)}. {remedy}")
        return self.builders[name](*args)
