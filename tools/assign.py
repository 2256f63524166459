"""Show label assignment; see ``atss_core/cli/assign.py``."""

from atss_core.cli import assign
from atss_core.cli.common import run

if __name__ == "__main__":
    run(assign.main)
