"""Check datasets; see ``atss_core/cli/check.py``."""

from atss_core.cli import check
from atss_core.cli.common import run

if __name__ == "__main__":
    run(check.main)
