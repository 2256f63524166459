"""Which images are in which batch.

Batches are lists of ``SampleKey``. They depend on the seed and the position in training alone, not on the
number of processes or workers, nor on where an earlier run stopped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """An image and the seed of its augmentation.

    Attributes:
        index: of the image in the data set.
        seed: of its random choices.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    seed: int = 0


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Batches for a number of iterations, each of one group; every image comes once an epoch.

    What is left of a group at the end of an epoch waits for the next one, so batches are always full.

    Args:
        groups: group of each image, such as wide or tall.
        batch_size: images an iteration over all processes.
        num_iters: iterations in all.
        start_iter: iterations done before; their batches are skipped.
        seed: of the order and of the sample seeds.
        rank: of this process, which gets its share of every batch.
        world_size: number of processes.
        num_parts: lists that a share is split into, which come one after the other.

    Raises:
        ValueError: if there are no images, or processes and parts cannot share a batch evenly.
    """

    def __init__(
        self,
        groups: Sequence[int],
        *,
        batch_size: int,
        num_iters: int,
        start_iter: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_parts: int = 1,
    ) -> None:
        if not len(groups):
            raise ValueError("the training set has no images with usable annotations")
        if num_parts < 1:
            raise ValueError(f"SOLVER.GRAD_ACCUM_STEPS must be at least 1, got {num_parts}")
        share = divide_batch(batch_size, world_size, "images in SOLVER.IMS_PER_BATCH", num_parts)
        self.groups = [int(group) for group in groups]
        self.batch_size = batch_size
        self.num_iters = num_iters
        self.start_iter = start_iter
        self.seed = seed
        self.num_parts = num_parts
        first = rank * num_parts
        self.parts = [slice(i * share, (i + 1) * share) for i in range(first, first + num_parts)]

    def __len__(self) -> int:
        return max(self.num_iters - self.start_iter, 0) * self.num_parts

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in islice(self._batches(), self.start_iter, self.num_iters):
            for part in self.parts:
                yield batch[part]

    def _batches(self) -> Iterator[list[SampleKey]]:
        waiting: dict[int, list[SampleKey]] = defaultdict(list)
        for position, index in enumerate(self._indices()):
            batch = waiting[self.groups[index]]
            batch.append(SampleKey(index, self.seed * 1_000_003 + position))
            if len(batch) == self.batch_size:
                yield waiting.pop(self.groups[index])

    def _indices(self) -> Iterator[int]:
        for epoch in count():
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            yield from torch.randperm(len(self.groups), generator=generator).tolist()


class EvalBatchSampler(Sampler[list[SampleKey]]):
    """Every image once over all processes, in fixed order, each batch of one group.

    Args:
        groups: group of each image.
        batch_size: images a batch of one process.
        rank: of this process, which gets every ``world_size``-th batch.
        world_size: number of processes.
    """

    __test__ = False  # its name is not meant for pytest

    def __init__(self, groups: Sequence[int], batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        members: dict[int, list[SampleKey]] = defaultdict(list)
        for index, group in enumerate(groups):
            members[int(group)].append(SampleKey(index))
        batches = [k[i : i + batch_size] for k in members.values() for i in range(0, len(k), batch_size)]
        # In order of their first image, as published; which images share padding changes GroupNorm.
        self.batches = sorted(batches)[rank::world_size]
        self.num_images = sum(map(len, self.batches))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)


def divide_batch(batch_size: int, world_size: int, what: str, num_parts: int = 1) -> int:
    """Return how many images of a batch a process takes at a time.

    Raises:
        ValueError: if processes and parts cannot share it evenly; ``what`` names the key in the message.
    """
    if batch_size < 1 or batch_size % (world_size * num_parts):
        parts = f" x {num_parts} parts (SOLVER.GRAD_ACCUM_STEPS)" if num_parts > 1 else ""
        raise ValueError(
            f"the number of {what} must be a positive multiple of the {world_size} processes{parts},"
            f" got {batch_size}"
        )
    return batch_size // (world_size * num_parts)
