"""ATSS: Adaptive Training Sample Selection for object detection (arXiv 1912.02424)."""

__version__ = "0.1.0"
