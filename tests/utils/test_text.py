import pytest

from atss_core.utils.text import printable, shorten


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("螺栓 écrou", "螺栓 écrou"),
        ("red\x1b[31m", "red\\x1b[31m"),
        ("two\nlines", "two\\nlines"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("half \ud83d", "half \\ud83d"),
        ("a\u2028b\u200bc\x7f", "a\\u2028b\\u200bc\\x7f"),
    ],
)
def test_characters_that_change_their_surroundings_are_escaped(text, shown):
    assert printable(text) == shown
    shown.encode("utf-8")  # can be written anywhere


def test_kept_characters_stay():
    assert printable("two\nlines\r", keep="\n") == "two\nlines\\r"


def test_long_values_are_cut():
    assert shorten("bolt") == "'bolt'"
    for value in ("x" * 10_000, 10**3000, {"a": list(range(10_000))}, [[[[[[1]]]]]] * 50):
        assert len(shorten(value)) < 200
