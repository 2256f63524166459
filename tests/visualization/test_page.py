import pytest
from jinja2 import UndefinedError
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration

from atss_core.visualization import page
from tests.apps.pages import Page, check_self_contained
from tests.golden import ROOT

NASTY = "<b>\x1b[1m\u202e\ud800 & \"x\" 'y'"
ESCAPED = r"&lt;b&gt;\x1b[1m\u202e\ud800 &amp; &#34;x&#34; &#39;y&#39;"
EVERYTHING = """{% extends "base.html" %}{% import "macros.html" as page %}{% block body %}
{{ page.contents({"a": name}) }}<pre>{{ lines }}</pre>
{{ page.table(name, ["", name], [[name, 1], ["b", name]], words=true) }}
{{ page.heat_table(name, ["", name], [(name, [(name, 0.7, true), ("", 0.0, false)])]) }}
{% call page.grid(300, is_wide=true) %}{{ page.figure("data:image/,", name, (20, 10)) }}{% endcall %}
{{ page.cards([(name, "50.0", name)]) }}<dl>{{ page.bar(name, "+1.0", 0.5, name) }}</dl>
{{ page.facts({name: name}) }}{% call page.folded(name) %}<p>{{ name }}</p>{% endcall %}
{{ page.legend({name: "rgb(1, 2, 3)"}) }}{% endblock %}"""


def render(tmp_path, text, **values):
    (tmp_path / "page.html").write_text(text)
    return page.render(tmp_path / "page.html", **values)


def test_all_elements_escape_markup_and_control_characters(tmp_path):
    text = render(tmp_path, EVERYTHING, title=NASTY, name=NASTY, lines="first: 1\nsecond: 2")
    read = check_self_contained(text)
    assert text.count(ESCAPED) == 2 + 1 + 4 + 3 + 1 + 2 + 2 + 2 + 2 + 2 + 1
    assert NASTY not in text
    assert "<b>\\x1b" not in text
    assert "first: 1\nsecond: 2" in text
    (image,) = read.images
    assert (image["width"], image["height"]) == ("20", "10")
    for words in ('class="words"', "--side: 300px", 'class="grid wide"', "--shade: 0.70", "width: 50.0%"):
        assert words in text
    assert 'class="good dark"' in text
    assert 'class=" zero"' in text
    assert "prefers-color-scheme: dark" in text


def test_a_missing_value_is_an_error(tmp_path):
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render(tmp_path, '{% extends "base.html" %}')


def test_templates_are_packaged(monkeypatch):
    monkeypatch.chdir(ROOT)
    distribution = apply_configuration(Distribution(), ROOT / "pyproject.toml")
    distribution.include_package_data = False  # by version control, of which an archive knows nothing
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    packaged = {ROOT / folder / file for _, folder, _, files in build.data_files for file in files}
    templates = set((ROOT / "atss_core").rglob("templates/*.html"))
    assert templates
    assert templates <= packaged


def test_pages_parse_as_a_browser_reads_them(tmp_path):
    assert Page(render(tmp_path, '{% extends "base.html" %}', title="A & B")).text.count("A & B") == 2
