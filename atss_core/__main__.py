"""``python -m atss_core`` is ``atss``, for launchers: ``torchrun --nproc_per_node 8 -m atss_core train``."""

from atss_core.cli.main import main

if __name__ == "__main__":
    main()
