"""Render HTML pages that open from disk: no script, nothing from a network, readable on a phone.

A page is a Jinja2 template that extends ``base.html`` and imports its elements from ``macros.html``, both in
``visualization/templates``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from atss_core.utils.text import printable

TEMPLATES = Path(__file__).with_name("templates")


def render(template: Path, **values: Any) -> str:
    """Return a page; autoescaping makes every value text, whatever markup or control characters it has.

    Args:
        template: file of the page; the templates beside it are found too.
        values: variables of the template; ``base.html`` needs ``title``.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    return environment.get_template(template.name).render(values)


def _printable(value: Any) -> Any:
    """Escape control characters of text; markup comes from a macro that has done so."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value, keep="\n\t") if is_text else value
