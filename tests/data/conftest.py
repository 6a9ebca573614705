"""A small data set in memory."""

from __future__ import annotations

import numpy as np
import pytest

from moekd.data.arrays import ArrayField, ArraySplit, to_float
from moekd.data.dataset import FieldSpec


def make_split(rows: int, classes: int = 4, offset: int = 0) -> ArraySplit:
    """Split whose field `x` holds the row number in each of 3 places."""
    values = np.repeat(np.arange(rows, dtype=np.float32)[:, None], 3, axis=1)
    arrays = {"x": ArrayField(values, FieldSpec((3,), "float32", "vector"), to_float)}
    names = [f"sample_{row}.bin" for row in range(rows)]
    return ArraySplit("train", np.arange(rows) + offset, np.arange(rows) % classes, arrays, names=names.__getitem__)


@pytest.fixture
def small_split() -> ArraySplit:
    return make_split(103, offset=1000)
