"""Check data sets; see ``atss_core/cli/check_dataset.py``."""

from atss_core.cli import check_dataset
from atss_core.cli.common import run

if __name__ == "__main__":
    run(check_dataset.main)
