"""Test a detector; see ``atss_core/cli/test.py``."""

from atss_core.cli import test
from atss_core.cli.common import run

if __name__ == "__main__":
    run(test.main)
