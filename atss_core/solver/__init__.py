"""Optimizer groups, learning-rate schedule and averaged weights."""

from atss_core.solver.build import build_average, build_optimizer, build_scheduler

__all__ = ["build_average", "build_optimizer", "build_scheduler"]
