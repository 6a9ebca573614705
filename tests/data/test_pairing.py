"""Batches with a share of labelled rows."""

from __future__ import annotations

import numpy as np
import pytest

from moekd.data.few_labels import labelled_mask, with_labels
from moekd.data.loader import BatchPlan, make_loader
from moekd.data.pairing import Pairing
from moekd.data.subset import labelled_part
from moekd.errors import DataError


def paired(split, share=0.5, amount=12):
    return with_labels(split, amount, 0, share)


def test_every_batch_holds_the_share_and_every_unlabelled_row_comes_once(small_split) -> None:
    split = paired(small_split)
    batches = list(make_loader(split, 16, shuffle=True, seed=3))
    counts = [(int(b["labelled"].sum()), len(b["id"])) for b in batches]
    assert counts == [(8, 16)] * 11 + [(8, 11)]
    ids = np.concatenate([b["id"][~b["labelled"]].numpy() for b in batches])
    assert sorted(ids.tolist()) == sorted(split.ids[~labelled_mask(small_split.labels, 12, 0)].tolist())
    seen = np.concatenate([b["id"][b["labelled"]].numpy() for b in batches])
    _, times = np.unique(seen, return_counts=True)
    assert len(times) == 12
    assert times.max() - times.min() <= 1, "labelled rows begin anew only when all were there"


def test_the_order_is_a_pure_function_and_can_be_entered_in_the_middle(small_split) -> None:
    split = paired(small_split)
    whole = [b["id"].tolist() for b in make_loader(split, 16, shuffle=True, seed=1, epoch=2)]
    assert whole == [b["id"].tolist() for b in make_loader(split, 16, shuffle=True, seed=1, epoch=2)]
    assert whole[5:] == [b["id"].tolist() for b in make_loader(split, 16, shuffle=True, seed=1, epoch=2, start_batch=5)]
    assert whole != [b["id"].tolist() for b in make_loader(split, 16, shuffle=True, seed=1, epoch=3)]
    straight = [b["id"].tolist() for b in make_loader(split, 16, shuffle=False)]
    assert [i for part in straight for i in part] == split.ids.tolist(), "evaluation and caches read every row once"


def test_processes_share_every_batch(small_split) -> None:
    split = paired(small_split)
    plans = [BatchPlan(len(split), 16, shuffle=True, rank=rank, world=2, batching=split.batching) for rank in range(2)]
    whole = list(BatchPlan(len(split), 16, shuffle=True, batching=split.batching))
    assert [a + b for a, b in zip(*plans, strict=True)] == whole
    mixed = [len(set(rows) & set(split.batching.labelled.tolist())) for rows in plans[0]]
    assert 0 < np.mean(mixed) < 8, "both kinds reach both processes"


def test_only_the_whole_split_is_paired(small_split) -> None:
    assert labelled_part(paired(small_split)).batching is None
    assert with_labels(small_split, 12, 0).batching is None


def test_mistakes(small_split) -> None:
    with pytest.raises(DataError, match=r"labelled_share 0.5 is for few labels: set `labels`"):
        with_labels(small_split, None, 0, 0.5)
    with pytest.raises(DataError, match="found 103 and 0"):
        with_labels(small_split, 103, 0, 0.5)
    with pytest.raises(DataError, match="batch_size of at least 2"):
        Pairing(np.arange(2), np.arange(3), 0.5).length(1)
