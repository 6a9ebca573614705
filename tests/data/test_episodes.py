"""Few-shot episodes: what they hold, in which order, for one and several processes, and what can not be drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.data import Episodes, labelled_part, with_episodes, with_labels
from moekd.data.loader import BatchPlan, make_loader
from moekd.errors import DataError


def drawn(episodes: Episodes, seed: int = 0, **options) -> list[list[int]]:
    return list(BatchPlan(0, 1, shuffle=True, seed=seed, batching=episodes, **options))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=2, max_size=8),
    unlabelled=st.integers(0, 5),
    ways=st.integers(2, 4),
    shots=st.integers(1, 3),
    queries=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_every_episode_is_one(sizes, unlabelled, ways, shots, queries, seed) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(seed).permutation(np.concatenate([labels, np.full(unlabelled, -1)]))
    large = {label for label, size in enumerate(sizes) if size >= shots + queries}
    if len(large) < ways:
        with pytest.raises(DataError, match=f"only {len(large)} of"):
            Episodes(labels, ways, shots, queries, 6)
        return
    batches = drawn(Episodes(labels, ways, shots, queries, 6), seed)
    assert len(batches) == 6
    for rows in batches:
        assert len(rows) == len(set(rows)) == ways * (shots + queries)
        examples, others = labels[rows[: ways * shots]], labels[rows[ways * shots :]]
        classes = set(examples.tolist())
        assert len(classes) == ways
        assert classes <= large
        assert examples.tolist() == np.repeat(examples[::shots], shots).tolist(), "class by class"
        assert others.tolist() == np.repeat(examples[::shots], queries).tolist(), "in the same order"


def test_all_classes_and_rows_have_their_turn() -> None:
    labels = np.arange(60) % 6
    rows = np.concatenate(drawn(Episodes(labels, 3, 1, 2, 400)))
    counts = np.bincount(rows, minlength=60)
    assert counts.sum() == 400 * 9
    assert 30 < counts.min() <= counts.max() < 95, "60 each, up to chance"


def test_the_order_is_a_pure_function_and_can_be_entered_in_the_middle() -> None:
    episodes = Episodes(np.arange(40) % 4, 2, 1, 3, 10)
    whole = drawn(episodes, 3, epoch=2)
    assert whole == drawn(episodes, 3, epoch=2)
    assert whole[6:] == drawn(episodes, 3, epoch=2, start_batch=6)
    assert whole != drawn(episodes, 3, epoch=1)
    assert whole != drawn(episodes, 4, epoch=2)
    assert drawn(episodes.first(3), 3, epoch=2) == whole[:3]
    assert len(drawn(episodes.first(30), 3)) == 10
    with pytest.raises(DataError, match="start_batch 11 is not in 0 to 10"):
        drawn(episodes, start_batch=11)


@pytest.mark.parametrize("world", [2, 5])
def test_processes_have_whole_episodes(world: int) -> None:
    episodes = Episodes(np.arange(40) % 4, 3, 2, 1, 10)
    parts = [drawn(episodes, rank=rank, world=world) for rank in range(world)]
    in_turn = [rows for step in zip(*parts, strict=True) for rows in step]
    assert in_turn == drawn(episodes), "those of one process, dealt out"
    late = [drawn(episodes, rank=rank, world=world, start_batch=1) for rank in range(world)]
    assert late == [part[1:] for part in parts]


def test_episodes_have_to_be_dealt_out_evenly() -> None:
    with pytest.raises(DataError, match="10 episodes an epoch can't be dealt out evenly to 3 processes"):
        drawn(Episodes(np.arange(40) % 4, 3, 2, 1, 10), world=3)


def test_only_labelled_rows_of_a_split_are_drawn(small_split) -> None:
    few = with_labels(small_split, 24, 0)
    part = with_episodes(labelled_part(few), 3, 2, 4, 5)
    batches = list(make_loader(part, 7, shuffle=True, seed=1))
    assert [len(b["id"]) for b in batches] == [18] * 5
    assert all(bool(b["labelled"].all()) for b in batches)
    assert all(len(set(b["label"].tolist())) == 3 for b in batches)
    kept = small_split.ids[few.mask]
    assert set(np.concatenate([b["id"].numpy() for b in batches]).tolist()) <= set(kept.tolist())
    straight = [b["id"].tolist() for b in make_loader(part, 7, shuffle=False)]
    assert [i for rows in straight for i in rows] == kept.tolist(), "evaluation and caches read every row once"
    assert labelled_part(few).batching is None


def test_too_few_rows_a_class_and_other_mistakes(small_split) -> None:
    with pytest.raises(DataError, match=r"only 0 of 4 classes have 16 labelled rows, the largest has 3"):
        with_episodes(labelled_part(with_labels(small_split, 12, 0)), 3, 1, 15, 5)
    with pytest.raises(DataError, match="at least 2 ways"):
        Episodes(np.arange(4) % 2, 1, 1, 1, 1)
    with pytest.raises(DataError, match="one label a row"):
        Episodes(np.zeros((3, 4, 4), dtype=np.int64), 2, 1, 1, 1)
    with pytest.raises(DataError, match="one label a row"):
        Episodes(None, 2, 1, 1, 1)
    with pytest.raises(DataError, match="only 0 of 0"):
        Episodes(np.full(5, -1), 2, 1, 1, 1)
