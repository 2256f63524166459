"""Text from files and users, made safe to print, log and draw."""

from __future__ import annotations

import reprlib
import unicodedata

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxlevel = 3

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


def chart_text(text: str) -> str:
    """Return text that matplotlib draws as it is: no formula, and a leading underscore does not hide it."""
    text = printable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def shorten(value: object) -> str:
    """Return the ``repr`` of a value, cut to what fits into an error message."""
    return _SHORT.repr(value)
