"""Write plain HTML pages that open from disk: no script, nothing from a network, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #212529; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 1300px; overflow-wrap: anywhere; }
p, li { max-width: 75ch; }
h2 { margin-top: 2.2rem; border-top: 1px solid #dee2e6; padding-top: 1rem; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 0; }
figcaption { color: #495057; font-size: 0.875rem; }
.scroll { overflow-x: auto; }
.grid { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--side)), 1fr)); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: 0.5rem 0; }
th, td { padding: 0.25rem 0.75rem; text-align: right; border-bottom: 1px solid #dee2e6; white-space: nowrap; }
th:first-child { text-align: left; }
""".strip()


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole page.

    Args:
        title: plain text; also the first heading.
        body: parts in HTML, in which names are escaped.
    """
    name = escape(title)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{name}</h1>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def text(tag: str, words: str) -> str:
    """Return plain text as an element such as "p" or "h2"."""
    return f"<{tag}>{escape(words)}</{tag}>"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain text that scrolls sideways where the screen is narrow; the first cells head."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(c)}</td>" for c in row[1:])}</tr>'
        for row in rows
    ]
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        "<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def figure(file: str, caption: str, size: tuple[int, int]) -> str:
    """Return a picture with a caption.

    Args:
        file: path from the page.
        caption: plain text, also what is read aloud.
        size: (width, height) in pixels, so that the page does not jump while it loads.
    """
    words = escape(caption)
    width, height = size
    return (
        f'<figure><img src="{escape(file)}" alt="{words}" width="{width}" height="{height}" loading="lazy">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def grid(items: Sequence[str], side: int) -> str:
    """Return elements side by side, each at least ``side`` pixels wide where the screen has so many."""
    return f'<div class="grid" style="--side: {side}px">\n' + "\n".join(items) + "\n</div>"
