"""Evaluate a detector; see ``atss_core/cli/evaluate.py``."""

from atss_core.cli import evaluate
from atss_core.cli.common import run

if __name__ == "__main__":
    run(evaluate.main)
