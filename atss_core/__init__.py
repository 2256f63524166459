"""ATSS: Adaptive Training Sample Selection for object detection (arXiv 1912.02424)."""

import os

__version__ = "0.1.0"

# The process that started this one. Importing takes seconds in which it may die, so it is noted first.
PARENT = os.getppid()
