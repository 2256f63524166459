"""Text from files and users, made safe to print, log and draw."""

from __future__ import annotations

import unicodedata

from atss_core.config.reading import shorten

__all__ = ["printable", "shorten"]

# Unicode categories that change the text around them: control characters (newline, escape), format marks
# (direction, zero width), surrogates, line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str, keep: str = "") -> str:
    """Escape control characters, direction marks and lone surrogates, ESC as ``x1b`` behind a backslash.

    Args:
        text: such as a class name or a file name.
        keep: characters that stay, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in _UNPRINTABLE and char not in keep
        else char
        for char in text
    )
