"""Order, sharding and resumption of loaders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moekd.data import BatchPlan, make_loader
from moekd.data.loader import WINDOW
from moekd.errors import DataError

from .conftest import make_split


def flat(lists) -> list[int]:
    return [value for values in lists for value in values]


def ids_of(loader) -> list[list[int]]:
    return [batch["id"].tolist() for batch in loader]


def test_order_is_a_function_of_seed_and_epoch(small_split):
    first = ids_of(make_loader(small_split, 10, shuffle=True, seed=3, epoch=5))
    torch.rand(7)
    np.random.rand(7)
    assert first == ids_of(make_loader(small_split, 10, shuffle=True, seed=3, epoch=5))
    assert first != ids_of(make_loader(small_split, 10, shuffle=True, seed=3, epoch=6))
    assert first != ids_of(make_loader(small_split, 10, shuffle=True, seed=4, epoch=5))


def test_a_loader_leaves_the_global_generators_alone(small_split):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    ids_of(make_loader(small_split, 10, shuffle=True))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


def test_every_sample_once_and_last_batch_kept(small_split):
    """D2, R8: the last partial batch is kept."""
    batches = ids_of(make_loader(small_split, 10, shuffle=True))
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    assert sorted(flat(batches)) == small_split.ids.tolist()
    assert flat(ids_of(make_loader(small_split, 10, shuffle=False))) == small_split.ids.tolist()


@pytest.mark.parametrize("start", [0, 1, 6, 11])
def test_mid_epoch_start_gives_the_tail(small_split, start):
    """R8: no sample twice, none left out."""
    whole = ids_of(make_loader(small_split, 10, shuffle=True, seed=1, epoch=2))
    assert ids_of(make_loader(small_split, 10, shuffle=True, seed=1, epoch=2, start_batch=start)) == whole[start:]


@pytest.mark.parametrize("rows", [100, 101, 102, 103, 109])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_read_the_global_batches(rows, world):
    """R8: of two and three processes."""
    split = make_split(rows)
    ranks = [ids_of(make_loader(split, 10, shuffle=True, seed=1, rank=rank, world=world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch for batches in ranks for batch in batches)
    joined = [flat(parts) for parts in zip(*ranks, strict=True)]
    assert flat(joined) == flat(ids_of(make_loader(split, 10, shuffle=True, seed=1)))
    assert [len(batch) for batch in joined[:-1]] == [10] * (len(joined) - 1)


@pytest.mark.parametrize("stop", [1, 4])
def test_r8_two_processes_read_each_sample_once_over_a_resume(small_split, stop):
    """R8: what both read before a stop, and after it, is every sample once."""
    read = []
    for start, end in ((0, stop), (stop, None)):
        for rank in range(2):
            loader = make_loader(small_split, 10, shuffle=True, seed=1, epoch=3, start_batch=start, rank=rank, world=2)
            read += flat(ids_of(loader)[: None if end is None else end - start])
    assert sorted(read) == sorted(small_split.ids.tolist())


def test_workers_give_the_same_batches(small_split):
    """R4: the order does not depend on loader processes."""
    alone = ids_of(make_loader(small_split, 10, shuffle=True))
    assert ids_of(make_loader(small_split, 10, shuffle=True, num_workers=2, timeout=60)) == alone


def test_one_call_reads_a_batch(small_split):
    batch = next(iter(make_loader(small_split, 4, shuffle=False)))
    assert batch["x"].tolist() == [[row] * 3 for row in range(4)]
    assert batch["label"].tolist() == [0, 1, 2, 3]
    assert batch["labelled"].tolist() == [True] * 4
    assert batch["id"].dtype == batch["label"].dtype == torch.int64


def test_impossible_plans_are_refused():
    """D2: fewer rows than processes."""
    with pytest.raises(DataError, match="rank 2 is not one of 2"):
        BatchPlan(10, 4, shuffle=False, rank=2, world=2)
    with pytest.raises(DataError, match="batch_size is 1"):
        BatchPlan(10, 1, shuffle=False, world=2)
    with pytest.raises(DataError, match="the split has 0 rows"):
        BatchPlan(0, 4, shuffle=False)
    with pytest.raises(DataError, match="start_batch 4 is not in 0 to 3"):
        BatchPlan(10, 4, shuffle=False, start_batch=4)


def test_length_counts_the_remaining_batches():
    assert len(BatchPlan(10, 4, shuffle=True)) == 3
    assert len(BatchPlan(10, 4, shuffle=True, start_batch=2)) == 1
    assert len(BatchPlan(9, 4, shuffle=True, world=2)) == 2
    assert len(BatchPlan(3, 4, shuffle=True)) == 1


@pytest.mark.parametrize("blocks", [np.repeat(np.arange(9), 7), np.tile([5, 2, 900], 21), np.zeros(63, dtype=np.int64)])
def test_block_order_is_a_shuffle_within_shuffled_windows(blocks):
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([3, 2])))
    names, block = np.unique(blocks, return_inverse=True)
    window = generator.permutation(len(names))[block] // WINDOW
    expected = np.lexsort([generator.random(63), window])
    assert np.array_equal(BatchPlan(63, 8, shuffle=True, seed=3, epoch=2, blocks=blocks).order(), expected)
