"""Write plain HTML pages that open from disk: no script, nothing from a network, readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape as escape_markup

from atss_core.utils.text import printable

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
.words :is(td, th):last-child { text-align: left; white-space: normal; min-width: 12rem; }
caption span { position: sticky; left: 0; display: inline-block;
  max-width: min(75ch, calc(100vw - 2rem)); }
.scroll th:first-child { position: sticky; left: 0; background: #fff; }
nav a { margin-right: 1rem; }
a { color: #0b5ed7; }
.wide img { width: 100%; }
.cards { display: grid; gap: 0.75rem; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.cards div { border: 1px solid #dee2e6; border-radius: 0.5rem; padding: 0.5rem 0.75rem; }
.cards dt { font-size: 0.875rem; color: #495057; }
.cards dd { margin: 0; font-size: 1.6rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.cards p { margin: 0; font-size: 0.8rem; color: #495057; line-height: 1.35; }
.bars { max-width: 46rem; }
.bars dt { margin-top: 0.8rem; }
.bars dt b { float: right; font-variant-numeric: tabular-nums; }
.bars dd { margin: 0; font-size: 0.875rem; color: #495057; }
.bars .track { background: #f1f3f5; height: 0.7rem; }
.bars .bar { background: #0072B2; height: 100%; }
.bars .track, .bars .bar, .heat td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.heat td { text-align: center; }
.facts dt { font-weight: 600; margin-top: 0.5rem; }
.facts dd { margin: 0; }
pre { overflow-x: auto; font-size: 0.8rem; background: #f8f9fa; padding: 0.75rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
.key { white-space: nowrap; margin-right: 1rem; }
.swatch { display: inline-block; width: 0.9em; height: 0.9em; border: 0.2em solid; vertical-align: -0.1em; }
@media (max-width: 600px) {
  body { padding: 0.75rem; }
  h1 { font-size: 1.5rem; }
  table { font-size: 0.875rem; }
  th, td { padding: 0.25rem 0.45rem; }
}
@media print {
  body { max-width: none; font-size: 11pt; }
  .scroll { overflow: visible; }
  figure, .cards div, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  nav { display: none; }
  details::details-content { content-visibility: visible; height: auto; }
}
""".strip()


def escape(words: str) -> str:
    """Escape what HTML reads as markup, and control characters."""
    return escape_markup(printable(words, keep="\n\t"))


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


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    """Return a table of plain text that scrolls sideways where the screen is narrow; the first cells head.

    Args:
        caption: plain text.
        header: of all columns.
        rows: the cells.
        words: whether the last column has sentences, which are broken into lines.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(c)}</td>" for c in row[1:])}</tr>'
        for row in rows
    ]
    return (
        f'<div class="scroll"><table{" class=words" if words else ""}>'
        f"<caption><span>{escape(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n"
        "<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def figure(file: str, caption: str, size: tuple[int, int]) -> str:
    """Return an image with a caption.

    Args:
        file: path from the page, or the image itself as a data URI.
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


def wide(part: str) -> str:
    """Let the images of a part take all of its width, as charts can, which stay crisp."""
    return f'<div class="wide">{part}</div>'


def contents(titles: Mapping[str, str]) -> str:
    """Return links to the sections of a page: id -> title."""
    links = "".join(f'<a href="#{escape(name)}">{escape(title)}</a> ' for name, title in titles.items())
    return f"<nav>{links}</nav>"


def heading(words: str, name: str) -> str:
    """Return the heading of a section that links lead to."""
    return f'<h2 id="{escape(name)}">{escape(words)}</h2>'


def cards(items: Sequence[tuple[str, str, str]]) -> str:
    """Return numbers to see first: their name, the number, and what it means."""
    parts = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(number)}</dd><p>{escape(meaning)}</p></div>"
        for name, number, meaning in items
    )
    return '<dl class="cards">\n' + "\n".join(parts) + "\n</dl>"


def bars(items: Sequence[tuple[str, str, float, str]]) -> str:
    """Return horizontal bars: name, number as text, share of the longest bar in 0..1, and what it means."""
    parts = (
        f'<dt>{escape(name)} <b>{escape(number)}</b><div class="track"><div class="bar" '
        f'style="width: {100 * share:.1f}%"></div></div></dt><dd>{escape(meaning)}</dd>'
        for name, number, share, meaning in items
    )
    return '<dl class="bars">\n' + "\n".join(parts) + "\n</dl>"


def heat_table(
    caption: str, header: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[str, float, bool]]]]
) -> str:
    """Return a table whose cells are shaded.

    Args:
        caption: plain text.
        header: of all columns.
        rows: name and cells: text, darkness in 0..1, and whether it is good (blue) or bad (orange).
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_heat_cell(*cell) for cell in cells)}</tr>'
        for name, cells in rows
    ]
    return (
        f'<div class="scroll"><table class="heat"><caption><span>{escape(caption)}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def facts(items: Mapping[str, str]) -> str:
    """Return names with long texts, such as commands."""
    parts = (f"<dt>{escape(name)}</dt><dd><code>{escape(words)}</code></dd>" for name, words in items.items())
    return '<dl class="facts">\n' + "\n".join(parts) + "\n</dl>"


def folded(summary: str, parts: Sequence[str]) -> str:
    """Return parts that show when the reader opens them, and in print."""
    return f"<details><summary>{escape(summary)}</summary>\n" + "\n".join(parts) + "\n</details>"


def legend(items: Mapping[str, str]) -> str:
    """Return what colours mean: words -> colour."""
    parts = (
        f'<span class="key"><span class="swatch" style="border-color: {escape(color)}"></span> '
        f"{escape(words)}</span>"
        for words, color in items.items()
    )
    return "<p>" + " ".join(parts) + "</p>"


def _heat_cell(words: str, darkness: float, is_good: bool) -> str:
    color = "0, 114, 178" if is_good else "213, 94, 0"
    ink = "#fff" if darkness > 0.6 else "#212529" if darkness else "#868e96"
    return f'<td style="background: rgba({color}, {darkness:.2f}); color: {ink}">{escape(words)}</td>'
