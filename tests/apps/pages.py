"""Look at HTML pages as a browser would."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=5000"),
)
# Measures the page in a frame of some width, and what loads in it.
PROBE = """<body><iframe id="page" src="{address}" style="width: {width}px; height: 3000px"></iframe><script>
window.onload = () => {{
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  document.title = "probe" + JSON.stringify({{
    width: root.clientWidth, needed: root.scrollWidth, height: root.scrollHeight,
    broken: [...page.images].filter(i => i.complete && !i.naturalWidth).length, images: page.images.length,
  }});
}};
</script></body>"""


class Page(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.texts, self.open = [], [], [], []
        self.images = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "data", "action") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def check_self_contained(text, folder=None):
    """Check that nothing is loaded from elsewhere, and that all elements are closed; returns the page.

    Images may be files of a folder, if one is given.
    """
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for address in page.addresses:
        if folder is None or address.startswith(("data:image/", "#")):
            assert address.startswith(("data:image/", "#"))
        else:
            assert "://" not in address
            Image.open(folder / address).load()
    assert "url(" not in text
    assert "@import" not in text
    for image in page.images:
        assert image["alt"]
    return page


def open_in_browser(file, width, folder):
    """Open a page in headless Chromium, in a window of some width.

    Returns:
        The size that it has and needs, its broken images, and what the browser logged.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium")
    probe = Path(folder) / "probe.html"
    probe.write_text(PROBE.format(address=Path(file).as_uri(), width=width))
    profile = Path(folder) / "profile"
    command = [browser, *QUIET, f"--user-data-dir={profile}", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    (measured,) = re.findall(r"<title>probe(.*?)</title>", done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(measured), console
