"""Train a detector; see ``atss_core/cli/train.py``."""

from atss_core.cli import train
from atss_core.cli.common import run

if __name__ == "__main__":
    run(train.main)
