"""Policies for bad samples."""

from __future__ import annotations

import numpy as np
import pytest

from moekd.data import make_loader, with_policy
from moekd.data.dataset import Split
from moekd.errors import DataError

BAD = [3, 40, 41]


@pytest.fixture
def damaged(small_split):
    small_split.arrays["x"].array[BAD[0], 1] = np.nan
    small_split.arrays["x"].array[BAD[1]] = np.inf
    small_split.arrays["x"].array[BAD[2]] = -np.inf
    return small_split


class Unreadable(Split):
    """Another split of which some rows can't be read."""

    def __init__(self, split, rows):
        super().__init__(split.name, split.ids, split.labels, split.fields)
        self.split, self.rows = split, rows

    def read(self, rows):
        bad = {position: "can't be decoded" for position, row in enumerate(rows) if row in self.rows}
        batch, _ = self.split.read([row for row in rows if row not in self.rows])
        return batch, bad

    def describe(self, sample_id):
        return self.split.describe(sample_id)


def test_raise_names_sample_and_path(damaged):
    """N1, D1: the message has id and path."""
    with pytest.raises(DataError, match=r"bad sample 1003 .*sample_3.bin.*field 'x' holds NaN or infinite"):
        with_policy(damaged, "raise").__getitems__([1, 2, 3])


def test_skip_leaves_the_row_out(damaged):
    """D1: skipped rows leave smaller batches, counted."""
    split = with_policy(damaged, "skip", max_bad_fraction=0.1)
    batches = list(make_loader(split, 20, shuffle=False))
    assert [len(batch["id"]) for batch in batches] == [19, 20, 18, 20, 20, 3]
    assert split.bad_count == 3
    seen = [value for batch in batches for value in batch["id"].tolist()]
    assert seen == [i for i in damaged.ids.tolist() if i - 1000 not in BAD]
    assert len(split.__getitems__([3])["id"]) == 0


def test_substitute_is_deterministic_and_keeps_the_batch_size(damaged):
    """D1: a substitute is always the same row."""
    split = with_policy(damaged, "substitute", max_bad_fraction=0.1)
    batch = split.__getitems__([2, 3, 4, 40])
    assert batch["x"].shape == (4, 3)
    assert batch["id"].tolist()[0] == 1002
    assert batch["id"].tolist()[2] == 1004
    assert all(i - 1000 not in BAD for i in batch["id"].tolist())
    assert (batch["x"][:, 0] == batch["id"] - 1000).all()
    again = with_policy(damaged, "substitute", max_bad_fraction=0.1).__getitems__([40, 3])
    assert again["id"].tolist() == [batch["id"].tolist()[3], batch["id"].tolist()[1]]


def test_unreadable_and_non_finite_rows_together(damaged):
    """D1: unreadable rows and NaN in one batch."""
    split = with_policy(Unreadable(damaged, {2, 5}), "skip", max_bad_fraction=0.1)
    assert split.__getitems__([1, 2, 3, 4, 5, 6])["id"].tolist() == [1001, 1004, 1006]
    assert split.bad_count == 3
    with pytest.raises(DataError, match=r"bad sample 1002 .*can't be decoded"):
        with_policy(Unreadable(damaged, {2, 5})).__getitems__([1, 2, 3])


def test_too_many_bad_samples_stop_the_run(damaged):
    """D1: more than the declared fraction stops the run."""
    split = with_policy(damaged, "skip", max_bad_fraction=0.02)
    with pytest.raises(DataError, match=r"3 bad samples in split 'train' of 103 rows, more than max_bad_fraction 0.02"):
        list(make_loader(split, 20, shuffle=False))


def test_a_bad_sample_is_counted_once(damaged):
    split = with_policy(damaged, "skip", max_bad_fraction=0.03)
    for _ in range(5):
        list(make_loader(split, 20, shuffle=True))
    assert split.bad_count == 3


def test_workers_count_together(damaged):
    """D1: worker processes count into one counter."""
    split = with_policy(damaged, "skip", max_bad_fraction=0.1)
    list(make_loader(split, 10, shuffle=False, num_workers=2, timeout=60))
    assert split.bad_count == 3


def test_without_bad_samples_nothing_changes(small_split):
    plain, wrapped = small_split.__getitems__([5, 6]), with_policy(small_split, "skip").__getitems__([5, 6])
    assert {key: value.tolist() for key, value in plain.items()} == {k: v.tolist() for k, v in wrapped.items()}
    assert with_policy(small_split).describe(1005) == "sample_5.bin"


def test_no_valid_substitute(small_split):
    small_split.arrays["x"].array[:] = np.nan
    with pytest.raises(DataError, match="no valid substitute"):
        with_policy(small_split, "substitute", max_bad_fraction=1.0).__getitems__([0])


@pytest.mark.parametrize(("policy", "fraction"), [("ignore", 0.1), ("skip", 1.5)])
def test_wrong_options_are_refused(small_split, policy, fraction):
    with pytest.raises(DataError):
        with_policy(small_split, policy, fraction)
