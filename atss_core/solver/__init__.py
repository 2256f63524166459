"""Optimizer groups and learning-rate schedule."""

from atss_core.solver.build import build_optimizer, build_scheduler

__all__ = ["build_optimizer", "build_scheduler"]
