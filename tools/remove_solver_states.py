"""Write only the weights of a checkpoint; see ``atss_core/cli/remove_solver_states.py``."""

from atss_core.cli import remove_solver_states
from atss_core.cli.common import run

if __name__ == "__main__":
    run(remove_solver_states.main)
