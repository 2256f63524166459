"""Learning rate over the iterations."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence


class MultiStep:
    """Factor of the learning rate that drops at given iterations.

    Args:
        steps: rising iterations; from each on, the factor is ``gamma`` times smaller.
        gamma: see ``steps``.

    Raises:
        ValueError: if ``steps`` do not rise.
    """

    def __init__(self, steps: Sequence[int], gamma: float = 0.1) -> None:
        if list(steps) != sorted(steps):
            raise ValueError(f"SOLVER.STEPS must rise, got {tuple(steps)}")
        self.steps = list(steps)
        self.gamma = gamma

    def __call__(self, iteration: int) -> float:
        """Return the factor at an iteration, counted from 0."""
        return self.gamma ** bisect_right(self.steps, iteration)


class Cosine:
    """Factor of the learning rate that falls from 1 to 0 in half a cosine (arXiv 1608.03983).

    Args:
        max_iter: iterations in all.
    """

    def __init__(self, max_iter: int) -> None:
        self.max_iter = max_iter

    def __call__(self, iteration: int) -> float:
        """Return the factor at an iteration, counted from 0."""
        return (1 + math.cos(math.pi * iteration / self.max_iter)) / 2


class Warmup:
    """Factor of the learning rate: a decay, times a factor below 1 in the first iterations.

    Args:
        decay: factor at each iteration.
        factor: at iteration 0.
        num_iters: iterations of warm-up.
        method: "constant" keeps ``factor``, "linear" rises to 1.

    Raises:
        ValueError: if the method is unknown.
    """

    def __init__(
        self,
        decay: Callable[[int], float],
        *,
        factor: float = 1 / 3,
        num_iters: int = 500,
        method: str = "linear",
    ) -> None:
        if method not in ("constant", "linear"):
            raise ValueError(f"SOLVER.WARMUP_METHOD must be 'constant' or 'linear', got {method!r}")
        self.decay = decay
        self.factor = factor
        self.num_iters = num_iters
        self.method = method

    def __call__(self, iteration: int) -> float:
        """Return the factor at an iteration, counted from 0."""
        return self._warmup(iteration) * self.decay(iteration)

    def _warmup(self, iteration: int) -> float:
        if iteration >= self.num_iters:
            return 1.0
        if self.method == "constant":
            return self.factor
        progress = iteration / self.num_iters
        return self.factor * (1 - progress) + progress
