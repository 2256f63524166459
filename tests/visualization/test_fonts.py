import logging
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from atss_core.apps.check.charts import plot_objects
from atss_core.structures import BoxList
from atss_core.visualization import fonts
from atss_core.visualization.boxes import draw_boxes, image_grid
from atss_core.visualization.fonts import drawable, set_literal, with_font


@pytest.fixture
def no_system_fonts(monkeypatch):
    """A machine whose only fonts are those that come with matplotlib."""

    def clear():
        fonts._choose_font.cache_clear()
        fonts._system_fonts.cache_clear()
        fonts._reported.clear()

    monkeypatch.setattr(fonts, "findSystemFonts", list)
    clear()
    yield
    clear()


def drawn(text, size=20):
    text, font = with_font(text, size)
    image = Image.new("L", (400, 40))
    ImageDraw.Draw(image).text((2, 2), text, fill=255, font=font)
    return np.asarray(image)


def test_letters_of_european_languages_are_drawn(no_system_fonts, caplog):
    letters = "éèßñøŁžğЖйΩλ"
    for letter in letters:
        assert drawable(letter)[0] == letter
    images = [drawn(letter).tobytes() for letter in letters]
    assert len(set(images)) == len(letters), "an empty box would be the same for all"
    assert not np.array_equal(drawn("é"), drawn("e"))
    assert np.array_equal(drawn("é")[15:], drawn("è")[15:]), "the same letter below the accent"
    assert not caplog.records


def test_ascii_keeps_the_font_of_pillow():
    assert drawable("dog 0.50") == ("dog 0.50", None)


def test_letters_without_a_font_differ_and_are_reported_once(no_system_fonts, caplog):
    assert drawable("螺栓 é")[0] == r"\u87ba\u6813 é"
    assert drawable("螺母")[0] == r"\u87ba\u6bcd"
    assert not np.array_equal(drawn("螺栓"), drawn("螺母"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "栓螺" in record.getMessage()
    assert "fonts-noto-cjk" in record.getMessage()


def test_a_font_of_the_system_serves_what_dejavu_lacks(monkeypatch, tmp_path, no_system_fonts):
    """STIX has letters that DejaVu lacks; here it plays the font for Chinese."""
    stix = fonts.DEJAVU.with_name("STIXGeneral.ttf")
    letter = min(fonts._letters_of(stix) - fonts._letters_of(fonts.DEJAVU))
    (tmp_path / "A.ttf").write_bytes(b"no font")
    others = ("LastResortHE-Regular.ttf", "STIXGeneralBol.ttf", "STIXGeneral.ttf")
    monkeypatch.setattr(
        fonts,
        "findSystemFonts",
        lambda: [str(tmp_path / "A.ttf"), *(str(stix.with_name(name)) for name in others)],
    )
    fonts._system_fonts.cache_clear()
    assert drawable(f"a{letter}") == (f"a{letter}", stix)
    assert with_font(f"a{letter}", 12)[1].getname()[0] == "STIXGeneral"


def test_names_that_are_no_plain_text(no_system_fonts):
    boxes = BoxList(torch.tensor([[5.0, 30, 60, 60]]), (100, 200), torch.tensor([1]))
    image = Image.new("RGB", (200, 100))
    for name in ("two\nlines", "esc\x1b[31m", "\ud800", "螺栓", "שלום", "é" * 300):
        assert draw_boxes(image, boxes, [name]) != image
        image_grid([[(name, image)]], title=name)
    assert drawable("two\nlines") == (r"two\nlines", None)
    assert drawable("a\u202eb")[0] == r"a\u202eb"


def test_charts_show_names_as_they_are(no_system_fonts, tmp_path):
    artist = Figure().suptitle("", fontsize=9)
    set_literal(artist, "$x^2$ écrou\n螺")
    assert artist.get_text() == r"$x^2$ écrou\n\u87ba"
    assert not artist.get_parse_math()
    assert artist.get_fontsize() == 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's of missing glyphs, and of broken formulas
        names = {"écrou": 2, "螺栓": 1, "$_": 3, "a\nb": 1}
        plot_objects(tmp_path / "a.png", "$\\bad$ 螺", np.array([20.0]), [64.0], names)
    assert min(Image.open(tmp_path / "a.png").size) > 200
