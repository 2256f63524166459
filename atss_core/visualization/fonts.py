"""Fonts that have the letters of a text, for drawings and charts.

Pillow's own font serves ASCII; DejaVu Sans, which comes with matplotlib, Latin, Greek and Cyrillic letters;
a font of the system others, such as Chinese.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontProperties, findSystemFonts
from matplotlib.ft2font import FT2Font
from matplotlib.legend import Legend
from matplotlib.text import Text
from PIL import ImageFont

from atss_core.utils.text import printable

logger = logging.getLogger(__name__)

SPACE = " "  # before a label of a legend: matplotlib hides labels that begin with an underscore

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
# Names of font files that are chosen last.
_UNUSUAL = re.compile("bold|black|heavy|light|thin|italic|oblique|serif|mono|condensed", re.IGNORECASE)
_reported: set[str] = set()  # scripts without a font


def drawable(text: str) -> tuple[str, Path | None]:
    """Return a text as it can be drawn, and the font file for it, None for the default font.

    Control characters, and letters that no font has, are escaped, so that different texts look different.
    """
    text = printable(text)
    if text.isascii():
        return text, None
    file, missing = _choose_font(frozenset(text))
    if scripts := {unicodedata.name(letter, "?").split(" ", 1)[0] for letter in missing} - _reported:
        _reported.update(scripts)
        logger.warning(
            "No font of this machine has %s, which drawings show as numbers. Install one that has, such as "
            "Noto Sans CJK for Chinese, Japanese and Korean (Debian: fonts-noto-cjk)",
            "".join(sorted(missing)),
        )
    text = "".join(c.encode("unicode_escape").decode("ascii") if c in missing else c for c in text)
    return text, file


def with_font(text: str, size: int) -> tuple[str, Font]:
    """Return a text as Pillow can draw it, with the font for it; the size is in pixels."""
    text, file = drawable(text)
    return text, _load(file, size)


def set_literal(artist: Text, text: str) -> None:
    """Let a chart show a text literally, not as a formula between dollar signs, in a font that has it."""
    text, file = drawable(text)
    artist.set_parse_math(False)
    artist.set_text(text)
    if file is not None:
        artist.set_fontproperties(FontProperties(fname=file, size=artist.get_fontsize()))


def set_legend_literal(legend: Legend) -> None:
    """Let a legend show its labels literally, without the ``SPACE`` before them."""
    for text in legend.get_texts():
        set_literal(text, text.get_text().removeprefix(SPACE))


@lru_cache(maxsize=64)
def _load(file: Path | None, size: int) -> Font:
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


@lru_cache(maxsize=1024)
def _choose_font(letters: frozenset[str]) -> tuple[Path, frozenset[str]]:
    """Return the first font that has all the letters, or else most of them, and the letters it lacks."""
    file = DEJAVU
    if letters - _letters_of(file):
        files = [DEJAVU, *_system_fonts()]
        complete = (file for file in files if letters <= _letters_of(file))
        file = next(complete, None) or min(files, key=lambda file: len(letters - _letters_of(file)))
    return file, letters - _letters_of(file)


@lru_cache(maxsize=1)
def _system_fonts() -> list[Path]:
    """Return the fonts of the system; matplotlib's own list misses newly installed ones."""
    # Last Resort has a box for every letter.
    files = [Path(file) for file in findSystemFonts() if not Path(file).name.startswith("LastResort")]
    return sorted(files, key=lambda file: (bool(_UNUSUAL.search(file.name)), file.name))


@lru_cache(maxsize=256)
def _letters_of(file: Path) -> frozenset[str]:
    """Return the letters of a font; none if it is damaged, or cannot be drawn at any size."""
    try:
        font = FT2Font(str(file))
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
