"""Choose the images of each batch.

Batches are lists of ``SampleKey``. They depend only on the seed and the position in training, not on the
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
    """The index of an image in the dataset and the seed of its augmentation."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    seed: int = 0


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Batches for a number of iterations, each of one group; every image comes once per epoch.

    Images of a group that do not fill a batch at the end of an epoch are kept for the next one, so batches
    are always full.

    Args:
        groups: group of each image, such as wide or tall.
        batch_size: images per iteration over all processes.
        num_iters: iterations in all.
        start_iter: iterations done before; their batches are skipped.
        seed: of the order and of the sample seeds.
        rank: of this process, which gets its share of every batch.
        world_size: number of processes.
        num_micro_batches: lists that a share is split into, which come one after the other.
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
        num_micro_batches: int = 1,
    ) -> None:
        if not len(groups):
            raise ValueError("the training set has no images with usable annotations")
        if num_micro_batches < 1:
            raise ValueError(f"SOLVER.GRAD_ACCUM_STEPS must be at least 1, got {num_micro_batches}")
        num_shares = world_size * num_micro_batches
        if batch_size < 1 or batch_size % num_shares:
            factor = f" x {num_micro_batches} micro-batches (SOLVER.GRAD_ACCUM_STEPS)"
            raise ValueError(
                "the number of images in SOLVER.IMS_PER_BATCH must be a positive multiple of the"
                f" {world_size} processes{factor if num_micro_batches > 1 else ''}, got {batch_size}"
            )
        self.groups = [int(group) for group in groups]
        self.batch_size = batch_size
        self.num_iters = num_iters
        self.start_iter = start_iter
        self.seed = seed
        size = batch_size // num_shares
        first = rank * num_micro_batches
        self.micro_batches = [
            slice(i * size, (i + 1) * size) for i in range(first, first + num_micro_batches)
        ]

    def __len__(self) -> int:
        return max(self.num_iters - self.start_iter, 0) * len(self.micro_batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in islice(self._batches(), self.start_iter, self.num_iters):
            for rows in self.micro_batches:
                yield batch[rows]

    def _batches(self) -> Iterator[list[SampleKey]]:
        waiting: dict[int, list[SampleKey]] = defaultdict(list)
        num_images, seed = len(self.groups), self.seed * 1_000_003
        for epoch in count():
            generator = torch.Generator().manual_seed(seed + epoch)
            order = torch.randperm(num_images, generator=generator).tolist()
            for position, index in enumerate(order, start=epoch * num_images):
                batch = waiting[self.groups[index]]
                batch.append(SampleKey(index, seed + position))
                if len(batch) == self.batch_size:
                    yield waiting.pop(self.groups[index])


class EvalBatchSampler(Sampler[list[SampleKey]]):
    """Every image once over all processes, in fixed order, each batch of one group.

    ``batch_size`` counts the images of one process, which gets every ``world_size``-th batch.
    """

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
