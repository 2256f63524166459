"""Detect objects in images and draw them; see ``atss_core/cli/demo.py``."""

from atss_core.cli import demo
from atss_core.cli.common import run

if __name__ == "__main__":
    run(demo.main)
