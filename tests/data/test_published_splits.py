"""The published splits, and ranges of large arrays."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from moekd.data.published_splits import column_range, rows_of_group

RNG = np.random.default_rng(0)
H5PY = importlib.util.find_spec("h5py") is not None


def test_the_published_permutations():
    rows = rows_of_group(10, 3)
    assert {name: len(part) for name, part in rows.items()} == {"train": 6, "val": 2, "test": 2}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(10))
    state = np.random.RandomState(19980427)
    draws = [state.permutation(10) for _ in range(4)]
    assert np.concatenate(list(rows.values())).tolist() == draws[3].tolist()


def test_ranges_of_arrays_that_are_read_in_parts():
    array = RNG.normal(size=(11, 3, 4))
    low, high = column_range(array, axis=1, chunk=4)
    assert low == pytest.approx(array.min(axis=(0, 2)).tolist())
    assert high == pytest.approx(array.max(axis=(0, 2)).tolist())
    assert column_range(array, chunk=4)[1] == [pytest.approx(array.max())]
