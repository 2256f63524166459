"""Make text from files and users safe to print, log and draw."""

from __future__ import annotations

import unicodedata

from atss_core.config.reading import shorten as shorten

# Unicode categories that change the text around them: control characters (newline, escape), format characters
# (direction, zero width), surrogates, line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str, keep: str = "") -> str:
    r"""Escape control characters, direction marks and lone surrogates, for example ESC as ``\x1b``.

    Args:
        text: such as a class name or a file name.
        keep: characters to leave as they are, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in _UNPRINTABLE and char not in keep
        else char
        for char in text
    )
