"""Some rows of a split, against the split itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moekd.data import make_loader, with_labels
from moekd.data.arrays import ArrayField, ArraySplit, to_float
from moekd.data.dataset import FieldSpec, Split
from moekd.data.few_labels import FewLabels
from moekd.data.subset import Rows, labelled_part
from moekd.errors import DataError

N = 30


def split_of(random: bool = False) -> ArraySplit:
    """Return a split whose field holds ten times the sample id."""
    ids = np.random.default_rng(1).permutation(500)[:N].astype(np.int64)
    field = ArrayField((10.0 * ids)[:, None], FieldSpec((1,), "float32", "vector"), to_float)
    labels = np.arange(N) % 3
    split = ArraySplit("train", ids, labels, {"x": field}, names="point {}".format)
    split.random = random
    return split


def rows_of(split: Split, rows: list[int]) -> Rows:
    """Return a part of a split."""
    return Rows(split, np.array(rows, dtype=np.int64), "a part")


def test_a_part_is_those_rows() -> None:
    whole = split_of()
    rows = [7, 0, 29, 3]
    part = rows_of(whole, rows)
    assert len(part) == 4
    assert (part.ids == whole.ids[rows]).all()
    assert (part.labels == whole.labels[rows]).all()
    batch, same = part.__getitems__([2, 0]), whole.__getitems__([29, 7])
    assert batch.keys() == same.keys()
    assert all(torch.equal(batch[key], same[key]) for key in batch)
    assert torch.equal(part[1]["x"], whole[0]["x"])
    assert part.describe(int(part.ids[1])) == whole.describe(int(whole.ids[0]))
    assert part.row_of(int(whole.ids[29])) == 2
    with pytest.raises(DataError):
        part.row_of(int(whole.ids[5]))


def test_every_row_once_an_epoch() -> None:
    part = rows_of(split_of(), list(range(4, 17)))
    for epoch in range(2):
        batches = list(make_loader(part, 5, shuffle=True, seed=1, epoch=epoch))
        ids = torch.cat([batch["id"] for batch in batches])
        assert sorted(ids.tolist()) == sorted(part.ids.tolist())
        assert all(torch.equal(batch["x"][:, 0], 10.0 * batch["id"]) for batch in batches)


def test_what_the_split_says_about_itself_stays() -> None:
    assert rows_of(split_of(random=True), [1, 2]).random
    assert not rows_of(split_of(), [1, 2]).random
    whole = split_of()
    whole.table, whole.blocks = {"name": [f"n{i}" for i in range(N)]}, np.arange(N) // 10
    part = rows_of(whole, [29, 1])
    assert part.table == {"name": ["n29", "n1"]}
    assert part.blocks.tolist() == [2, 0]


def test_a_part_of_a_part() -> None:
    part = rows_of(rows_of(split_of(), [5, 6, 7, 8]), [3, 1])
    assert (part.ids == split_of().ids[[8, 6]]).all()
    assert torch.equal(part.__getitems__([0])["x"], split_of().__getitems__([8])["x"])


def test_bad_samples_keep_their_place_and_name() -> None:
    class Holes(ArraySplit):
        def read(self, rows):
            return super().read([row for row in rows if row != 6])[0], {
                place: "broken" for place, row in enumerate(rows) if row == 6
            }

    whole = split_of()
    holes = Holes("train", whole.ids, whole.labels, whole.arrays, names="point {}".format)
    part = rows_of(holes, [5, 6, 7])
    batch, bad = part.read([0, 1, 2])
    assert bad == {1: "broken"}
    assert batch["id"].tolist() == whole.ids[[5, 7]].tolist()
    with pytest.raises(DataError, match=f"bad sample {whole.ids[6]} .*broken"):
        part.__getitems__([0, 1])


def test_the_labelled_part_has_labels_and_nothing_else() -> None:
    few = with_labels(split_of(), 9, seed=4)
    assert isinstance(few, FewLabels)
    part = labelled_part(few)
    batch = part.__getitems__(list(range(len(part))))
    assert len(part) == 9
    assert bool(batch["labelled"].all())
    assert (batch["label"].numpy() == part.labels).all()
    assert set(part.ids) == set(few.ids[few.mask])
    assert "labelled" in part.name


def test_a_split_with_all_labels_is_its_own_labelled_part() -> None:
    whole = split_of()
    assert labelled_part(whole) is whole
    assert labelled_part(with_labels(whole, None)) is whole
