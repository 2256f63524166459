import json
import re

import pytest
from matplotlib.figure import Figure

from atss_core.utils.files import atomic_write
from atss_core.utils.text import printable, shorten
from atss_core.visualization.charts import plot_runs
from atss_core.visualization.fonts import SPACE, set_legend_literal
from atss_core.visualization.page import render


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
def test_characters_that_affect_the_surrounding_text_are_escaped(text, shown):
    assert printable(text) == shown
    shown.encode("utf-8")  # can be written anywhere


def test_characters_to_keep_are_not_escaped():
    assert printable("two\nlines\r", keep="\n") == "two\nlines\\r"


def test_long_values_are_shortened():
    assert shorten("bolt") == "'bolt'"
    for value in ("x" * 10_000, 10**3000, {"a": list(range(10_000))}, [[[[[[1]]]]]] * 50):
        assert len(shorten(value)) < 200


@pytest.mark.parametrize("name", ["$x_1$", "5 $", r"\$ $", "_hidden", "a_b^c"])
def test_charts_show_names_literally(name):
    axes = Figure().subplots()
    axes.plot([1], label=SPACE + name)
    legend = axes.legend()
    set_legend_literal(legend)
    (text,) = legend.get_texts()
    shown, is_math = text._preprocess_math(text.get_text())
    assert shown == name
    assert not is_math


def test_curves_accept_any_names_of_runs(tmp_path):
    names = ["$\\frac$", "_first", "esc\x1b\n\ud800\u202e"]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"iteration": i, "loss": 1.0, "lr": 0.1}) + "\n" for i in (1, 2)))
    plot_runs(dict.fromkeys(names, file), tmp_path / "curves.svg")
    comments = re.findall(r"<!-- (.*?) -->", (tmp_path / "curves.svg").read_text(encoding="utf-8"))
    assert r"$\frac$" in comments
    assert "_first" in comments
    assert r"esc\x1b\n\ud800\u202e" in comments


def test_pages_and_files_accept_any_names(tmp_path):
    name = "<b>\x1b[1m\u202e\ud800"
    template = tmp_path / "template.html"
    template.write_text('{% extends "base.html" %}{% block body %}<pre>{{ title }}\n</pre>{% endblock %}')
    with atomic_write(tmp_path / "page.html", "w") as file:
        file.write(render(template, title=name))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count(r"&lt;b&gt;\x1b[1m\u202e\ud800") == 3
    with atomic_write(tmp_path / "names.json", "w") as file:
        json.dump([name], file, ensure_ascii=False)
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == [name]
