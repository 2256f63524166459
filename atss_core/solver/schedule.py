"""Learning rate over the iterations."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class WarmupMultiStep:
    """Factor of the learning rate: warm-up, then a constant that drops at given iterations.

    Args:
        steps: rising iterations; from each on, the factor is ``gamma`` times smaller.
        gamma: see ``steps``.
        warmup_factor: factor at iteration 0.
        warmup_iters: iterations of warm-up.
        warmup_method: "constant" keeps ``warmup_factor``, "linear" rises to 1.

    Raises:
        ValueError: if ``steps`` do not rise or the method is unknown.
    """

    def __init__(
        self,
        steps: Sequence[int],
        *,
        gamma: float = 0.1,
        warmup_factor: float = 1.0 / 3,
        warmup_iters: int = 500,
        warmup_method: str = "linear",
    ) -> None:
        if list(steps) != sorted(steps):
            raise ValueError(f"SOLVER.STEPS must rise, got {tuple(steps)}")
        if warmup_method not in ("constant", "linear"):
            raise ValueError(f"SOLVER.WARMUP_METHOD must be 'constant' or 'linear', got {warmup_method!r}")
        self.steps = list(steps)
        self.gamma = gamma
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method

    def __call__(self, iteration: int) -> float:
        """Return the factor at an iteration, counted from 0."""
        return self._warmup(iteration) * self.gamma ** bisect_right(self.steps, iteration)

    def _warmup(self, iteration: int) -> float:
        if iteration >= self.warmup_iters:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        progress = iteration / self.warmup_iters
        return self.warmup_factor * (1 - progress) + progress
