from collections import Counter
from itertools import chain

import numpy as np
import pytest

from atss_core.data.samplers import EvalBatchSampler, TrainBatchSampler

GROUPS = [0] * 13 + [1] * 24


def train(groups=GROUPS, batch_size=4, num_iters=60, **more):
    return list(TrainBatchSampler(groups, batch_size=batch_size, num_iters=num_iters, **more))


def test_every_image_comes_once_per_epoch():
    # 37 epochs of 37 images in batches of 1: no image waits for the next epoch.
    indices = [key.index for (key,) in train(batch_size=1, num_iters=3 * len(GROUPS))]
    epochs = np.split(np.array(indices), 3)
    assert all(sorted(epoch) == list(range(len(GROUPS))) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_incomplete_batches_wait_and_no_image_is_preferred():
    counts = Counter(key.index for key in chain(*train(num_iters=370)))
    # 1480 images are 40 epochs; an image can be at most one epoch behind or ahead.
    assert len(counts) == len(GROUPS)
    assert set(counts.values()) <= {39, 40, 41}


def test_batches_are_full_and_of_one_group():
    batches = train()
    assert len(batches) == 60
    assert all(len(batch) == 4 for batch in batches)
    assert all(len({GROUPS[key.index] for key in batch}) == 1 for batch in batches)
    assert {GROUPS[batch[0].index] for batch in batches} == {0, 1}


def test_sample_seeds_are_distinct():
    seeds = [key.seed for key in chain(*train())]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("start_iter", [1, 9, 10, 59, 60])
def test_resuming_continues_the_same_batches(start_iter):
    sampler = TrainBatchSampler(GROUPS, batch_size=4, num_iters=60, start_iter=start_iter)
    assert list(sampler) == train()[start_iter:]
    assert len(sampler) == 60 - start_iter


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_same_global_batches(world_size):
    ranks = [train(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [list(chain(*shares)) for shares in zip(*ranks, strict=True)] == train()


def test_order_follows_the_seed():
    assert train(seed=3) == train(seed=3)
    assert train(seed=3) != train(seed=4)


def test_fewer_images_than_a_batch():
    batches = train(groups=[0, 1, 0], batch_size=8, num_iters=6)
    assert all(len(batch) == 8 for batch in batches)
    assert {key.index for key in chain(*batches)} == {0, 1, 2}


def test_batch_size_must_be_divisible_by_the_processes():
    with pytest.raises(ValueError, match=r"multiple of the 3 processes, got 4"):
        train(rank=0, world_size=3)


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        train(groups=[])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_takes_every_image_once(world_size):
    batches = [
        b for r in range(world_size) for b in EvalBatchSampler(GROUPS, 4, rank=r, world_size=world_size)
    ]
    assert sorted(key.index for key in chain(*batches)) == list(range(len(GROUPS)))
    assert all(len({GROUPS[key.index] for key in batch}) == 1 for batch in batches)


def test_evaluation_goes_in_order_of_the_first_images():
    batches = [[key.index for key in batch] for batch in EvalBatchSampler([1, 0, 0, 1, 1, 0], 2)]
    assert batches == [[0, 3], [1, 2], [4], [5]]
    assert len(EvalBatchSampler([1, 0, 0, 1, 1, 0], 2)) == 4


def test_more_processes_than_evaluation_batches():
    assert list(EvalBatchSampler([0, 0], 4, rank=1, world_size=2)) == []
