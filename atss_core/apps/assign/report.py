"""What counting the assignment of anchors tells, as text and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atss_core.apps.assign.assignment import QUANTILES, SIZES
from atss_core.visualization import html

ATSS = "ATSS"

EXPLANATION = (
    "An anchor is positive if it is to learn an object. ATSS looks at the candidates of each object: the "
    "anchors of each level whose centres are nearest to its own. The mean plus the standard deviation of "
    "their IoUs is the object's own threshold; candidates that reach it, and whose centre is inside "
    "the object, are positive. An anchor that several objects want goes to the one that it overlaps most.",
    "SSC (FCOS) takes all anchors inside an object on the level for its size, IoU (RetinaNet) those above "
    "a fixed threshold, TOPK a fixed number. An object without a positive is not learned. "
    "MODEL.ATSS.AT_LEAST_ONE gives it the candidate it overlaps most that no other object needs.",
    "Sizes are those of the network's input: S below 32 x 32 pixels, M below 96 x 96, L from there on.",
)
HOW_TO_READ = (
    "Dots are centres of positive anchors in the colours of their objects; objects in thick red got none. "
    "Below, circles are the candidates of one object, coloured by level, and filled where positive; beside "
    "them their IoUs, with the mean (dashed) and the threshold (line)."
)

# What the table tells of each rule: key of the report -> title, factor and format.
COLUMNS = {
    "positives_per_object": ("positives per object", 1, "{:.1f}"),
    "share_without_positive": ("objects without a positive, %", 100, "{:.2f}"),
}


def column_of_rules(report: Mapping[str, Any], key: str) -> dict[str, dict[str, float | None]]:
    """Return rule -> size -> one of ``COLUMNS``."""
    return {rule: {size: of[size][key] for size in SIZES} for rule, of in report["rules"].items()}


def tables(report: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the tables of a report: title, header and rows, all as text."""
    first_rule = report["rules"][ATSS]
    header = [f"{size} ({first_rule[size]['objects']})" for size in SIZES]
    found = []
    for key, (title, factor, form) in COLUMNS.items():
        rows = [
            [rule, *(_text(value, factor, form) for value in values.values())]
            for rule, values in column_of_rules(report, key).items()
        ]
        found.append((title, ["rule", *header], rows))
    quantiles = [
        [f"{100 * quantile:.0f}% of the objects are below", *(_text(v, 1, "{:.3f}") for v in values)]
        for quantile in QUANTILES
        for values in [[report["thresholds"][size]["quantiles"][str(quantile)] for size in SIZES]]
    ]
    found.append(("threshold of ATSS", ["", *header], quantiles))
    return found


def _text(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else form.format(factor * value)


def describe(report: Mapping[str, Any]) -> list[str]:
    """Return the report as lines of text."""
    lines = [
        f"{report['name']} ({report['layout']} layout, {report['path']})",
        f"  {report['num_objects']} objects of {report['num_images']} images, sizes in pixels of the "
        "network's input: S < 32 x 32 <= M < 96 x 96 <= L",
    ]
    for title, header, rows in tables(report):
        width = max(len(row[0]) for row in rows)
        widths = [max(map(len, column)) for column in zip(*(row[1:] for row in [header, *rows]), strict=True)]
        lines.append(f"  {title}")
        for row in [["", *header[1:]], *rows]:
            cells = "  ".join(f"{cell:>{w}}" for cell, w in zip(row[1:], widths, strict=True))
            lines.append(f"    {row[0]:<{width}}  {cells}")
    return lines


def to_html(report: Mapping[str, Any], summary_size: tuple[int, int], parts: Sequence[str]) -> str:
    """Return the page.

    Args:
        report: as ``report.json`` has it.
        summary_size: (width, height) of ``images/summary.png``.
        parts: of the page, for the images.
    """
    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items())
    return html.page(
        f"Anchors on {report['name']}",
        [
            *(html.text("p", words) for words in EXPLANATION),
            html.text("p", f"{report['num_objects']} objects of {report['num_images']} images; {settings}."),
            *(html.table(*content) for content in tables(report)),
            html.figure("images/summary.png", "the tables as bars, and all thresholds", summary_size),
            *([html.text("p", HOW_TO_READ)] if parts else []),
            *parts,
        ],
    )
