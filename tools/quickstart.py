"""Write a small dataset, train on it, evaluate and draw; see ``atss_core/cli/quickstart.py``."""

from atss_core.cli import quickstart
from atss_core.cli.common import run

if __name__ == "__main__":
    run(quickstart.main)
