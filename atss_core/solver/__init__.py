"""Optimizer groups, learning rate schedule and EMA weights."""

from atss_core.solver.build import build_ema, build_optimizer, build_scheduler

__all__ = ["build_ema", "build_optimizer", "build_scheduler"]
