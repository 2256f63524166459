"""Learning rate schedules: factors of the base learning rate by iteration, counted from 0."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence


def multi_step(iteration: int, *, steps: Sequence[int], gamma: float) -> float:
    """Multiply the learning rate by ``gamma`` at each of ``steps``, rising iterations."""
    return float(gamma ** bisect_right(steps, iteration))


def cosine(iteration: int, *, max_iter: int) -> float:
    """Anneal the learning rate to 0 at ``max_iter`` along half a cosine (arXiv 1608.03983)."""
    return (1 + math.cos(math.pi * iteration / max_iter)) / 2


def warmup(
    iteration: int, *, schedule: Callable[[int], float], factor: float, num_iters: int, is_linear: bool
) -> float:
    """Multiply a schedule by a smaller factor in the first ``num_iters`` iterations.

    ``factor`` is that of iteration 0; it rises to 1 if ``is_linear`` and is constant otherwise.
    """
    if iteration < num_iters:
        progress = iteration / num_iters if is_linear else 0.0
        return (factor * (1 - progress) + progress) * schedule(iteration)
    return schedule(iteration)
