"""Choosing the labelled rows."""

from __future__ import annotations

import numpy as np
import pytest

from moekd.data import labelled_mask, make_loader, with_labels, with_policy
from moekd.errors import DataError

LABELS = np.repeat(np.arange(5), [400, 300, 200, 99, 1])


@pytest.mark.parametrize("amount", [1, 4, 5, 7, 100, 999, 1000])
def test_counts_are_exact_and_every_class_is_there(amount):
    mask = labelled_mask(LABELS, amount, seed=1)
    assert mask.sum() == amount
    if amount >= 5:
        assert set(LABELS[mask]) == {0, 1, 2, 3, 4}


def test_shares_follow_the_class_sizes():
    assert np.bincount(LABELS[labelled_mask(LABELS, 100)]).tolist() == [40, 30, 20, 9, 1] or (
        np.bincount(LABELS[labelled_mask(LABELS, 100)]).tolist() == [40, 30, 19, 10, 1]
    )


def test_a_fraction_is_a_share_of_the_rows():
    assert labelled_mask(LABELS, 0.25).sum() == 250
    assert labelled_mask(LABELS, 1.0).all()


def test_the_draw_depends_on_the_seed_alone():
    assert (labelled_mask(LABELS, 50, seed=2) == labelled_mask(LABELS, 50, seed=2)).all()
    assert (labelled_mask(LABELS, 50, seed=2) != labelled_mask(LABELS, 50, seed=3)).any()


def test_more_labels_keep_the_earlier_ones():
    few, many = labelled_mask(LABELS, 50, seed=2), labelled_mask(LABELS, 500, seed=2)
    assert many[few].all()


@pytest.mark.parametrize("amount", [0, -1, 1001, 0.0, 1.5])
def test_impossible_amounts_are_refused(amount):
    with pytest.raises(DataError, match="labels"):
        labelled_mask(LABELS, amount)


def test_the_batch_hides_labels_and_the_split_keeps_the_rest(small_split):
    few = with_labels(small_split, 12, seed=0)
    assert set(few[0]) == {"id", "label", "hidden_label", "labelled", "x"}
    rows = few.__getitems__(list(range(103)))
    assert int(rows["labelled"].sum()) == 12
    assert (rows["label"][~rows["labelled"]] == -1).all()
    assert rows["label"][rows["labelled"]].tolist() == small_split.labels[rows["labelled"].numpy()].tolist()
    assert few.describe(1003) == "sample_3.bin"
    assert (few.ids == small_split.ids).all()
    assert (few.labels == small_split.labels).all()
    assert with_labels(small_split, None) is small_split


def test_labels_follow_a_substituted_row(small_split):
    small_split.arrays["x"].array[5] = np.nan
    inner = with_labels(with_policy(small_split, "substitute", 0.1), 12)
    outer = with_policy(with_labels(small_split, 12), "substitute", 0.1)
    for first, second in zip(make_loader(inner, 8, shuffle=False), make_loader(outer, 8, shuffle=False), strict=True):
        assert first["id"].tolist() == second["id"].tolist()
        assert first["label"].tolist() == second["label"].tolist()
