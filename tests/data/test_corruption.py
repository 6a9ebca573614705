"""Corrupted fields: the same rows and values in every order, and nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.data import make_loader, with_labels, with_policy
from moekd.data.arrays import ArrayField, ArraySplit
from moekd.data.corruption import Corruption, fingerprint_of, standard_deviation, uniform_of, with_corruptions
from moekd.data.dataset import FieldSpec
from moekd.errors import DataError

FIELDS = {
    "x": FieldSpec((4,), "float32", "vector"),
    "y": FieldSpec((2, 3), "float32", "vector"),
    "text": FieldSpec((5,), "int64", "text"),
    "text_mask": FieldSpec((5,), "bool", "text"),
}


def make(name="train", rows=200, offset=0, seed=0):
    """Split with distinct values everywhere; ids are not in the order of the rows."""
    generator = np.random.default_rng(seed)
    values = {
        "x": generator.normal(3, 2, (rows, 4)).astype(np.float32),
        "y": generator.normal(size=(rows, 2, 3)).astype(np.float32),
        "text": np.arange(1, rows * 5 + 1).reshape(rows, 5),
        "text_mask": np.arange(5) < 1 + generator.integers(0, 5, (rows, 1)),
    }
    arrays = {key: ArrayField(value, FIELDS[key]) for key, value in values.items()}
    return ArraySplit(name, generator.permutation(rows) + offset, np.arange(rows) % 7, arrays)


def corrupt(split, *corruptions, seed=0):
    return with_corruptions({split.name: split}, corruptions, FIELDS, seed)[split.name]


def everything(split, batch_size=64, **options):
    """Return the whole split as one batch in the order of the ids."""
    batches = list(make_loader(split, batch_size, **{"shuffle": False} | options))
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    return {key: value[joined["id"].argsort()] for key, value in joined.items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


kinds = st.sampled_from(["noise", "missing", "swapped"])
fractions = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


@settings(max_examples=40, deadline=None)
@given(kinds, fractions, st.integers(0, 2**70), st.integers(2, 90), st.integers(0, 5))
def test_values_do_not_depend_on_order_batching_or_processes(kind, fraction, seed, batch_size, epoch):
    split = make(rows=90)
    one, two = (corrupt(split, Corruption("x", kind, fraction), seed=seed) for _ in range(2))
    expected = everything(one, 90)
    assert equal(expected, everything(two, batch_size, shuffle=True, seed=seed % 99, epoch=epoch))
    parts = [everything(two, batch_size, shuffle=True, rank=rank, world=2) for rank in range(2)]
    joined = {key: torch.cat([part[key] for part in parts]) for key in expected}
    assert equal(expected, {key: value[joined["id"].argsort()] for key, value in joined.items()})
    row = int(np.random.default_rng(seed).integers(90))
    place = int((expected["id"] == int(split.ids[row])).nonzero())
    assert all(torch.equal(one[row][key], expected[key][place]) for key in expected)


@settings(max_examples=40, deadline=None)
@given(kinds, kinds, fractions, st.integers(0, 1000))
def test_only_the_flagged_values_of_the_field_change(first, second, fraction, seed):
    split = make()
    clean = everything(split)
    batch = everything(corrupt(split, Corruption("x", first, fraction), Corruption("y", second, 0.5), seed=seed))
    for key in clean.keys() - {"x", "y"}:
        assert torch.equal(batch[key], clean[key])
    for field in ("x", "y"):
        changed = (batch[field] != clean[field]).flatten(1).any(dim=1)
        assert torch.equal(changed, batch[f"corrupted_{field}"])


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(0, 2**64), st.integers(0, 10**12))
def test_the_share_of_rows_is_the_fraction(fraction, seed, offset):
    few, many = (make(rows=4000, offset=offset), make(rows=4000, offset=offset))
    flag = corrupt(few, Corruption("x", "missing", fraction), seed=seed).chosen["x"] >= 0
    assert abs(flag.mean() - fraction) < 5 * np.sqrt(0.25 / 4000)
    larger = corrupt(many, Corruption("x", "swapped", min(1.0, fraction + 0.1)), seed=seed).chosen["x"] >= 0
    assert larger[flag].all()


def test_fields_and_seeds_are_drawn_independently():
    split = make(rows=4000)
    both = corrupt(split, Corruption("x", "missing", 0.5), Corruption("y", "missing", 0.5))
    other = corrupt(split, Corruption("x", "missing", 0.5), seed=1)
    flags = [both.chosen["x"] >= 0, both.chosen["y"] >= 0, other.chosen["x"] >= 0]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert abs((flags[one] & flags[two]).mean() - 0.25) < 0.04


def test_the_clean_field_does_not_change_which_rows_of_another_are_corrupted():
    split = make()
    alone = corrupt(split, Corruption("y", "noise", 0.5))
    beside = corrupt(split, Corruption("x", "missing", 0.3), Corruption("y", "noise", 0.5))
    assert torch.equal(everything(alone)["y"], everything(beside)["y"])


def test_noise_has_the_stated_size():
    split = make(rows=3000)
    clean = everything(split)["x"]
    noise = everything(corrupt(split, Corruption("x", "noise", 1.0, severity=3.0)))["x"] - clean
    scale = standard_deviation(split, "x")
    assert scale == pytest.approx(2.0, rel=0.05)
    assert noise.std() == pytest.approx(3 * scale, rel=0.03)
    assert abs(noise.mean()) < 0.2
    stacked = torch.corrcoef(noise.T)
    assert (stacked - torch.eye(4)).abs().max() < 0.08


def test_the_scale_of_noise_is_that_of_the_training_rows():
    splits = {"train": make(rows=2500), "test": make("test", 50, 2500)}
    splits["test"].arrays["x"].array[:] *= 100
    wrapped = with_corruptions(splits, [Corruption("x", "noise", 1.0, splits=("test",))], FIELDS, 0)
    noise = everything(wrapped["test"])["x"] - everything(splits["test"])["x"]
    assert noise.std() == pytest.approx(2.0, rel=0.2)
    rows = np.unique(np.linspace(0, 2499, 1000).astype(int))
    assert standard_deviation(splits["train"], "x") == pytest.approx(splits["train"].arrays["x"].array[rows].std())


def test_swapped_values_come_from_other_corrupted_rows_with_their_mask():
    split = make()
    clean, batch = everything(split), everything(corrupt(split, Corruption("text", "swapped", 0.4)))
    flag = batch["corrupted_text"]
    donors = [int((clean["text"][:, 0] == value).nonzero()) for value in batch["text"][flag][:, 0]]
    places = flag.nonzero().flatten().tolist()
    assert sorted(donors) == places
    assert all(donor != place for donor, place in zip(donors, places, strict=True))
    assert torch.equal(batch["text"][flag], clean["text"][donors])
    assert torch.equal(batch["text_mask"][flag], clean["text_mask"][donors])
    assert torch.equal(batch["text_mask"][~flag], clean["text_mask"][~flag])


def test_missing_is_zero_also_for_tokens():
    batch = everything(corrupt(make(), Corruption("text", "missing", 0.4), Corruption("y", "missing", 1.0)))
    assert (batch["text"][batch["corrupted_text"]] == 0).all()
    assert (batch["y"] == 0).all()


def test_several_corruptions_of_a_field_meet_different_rows():
    kinds = ("noise", "missing", "swapped")
    split = corrupt(make(rows=3000), *(Corruption("x", kind, 0.25) for kind in kinds))
    assert np.bincount(split.chosen["x"] + 1, minlength=4) == pytest.approx([750] * 4, abs=100)


def test_only_the_named_splits_are_touched_and_all_have_flags():
    splits = {"train": make(), "test": make("test", 60, 200)}
    wrapped = with_corruptions(splits, [Corruption("x", "noise", 0.5, splits=("test",))], FIELDS, 0)
    train, test = everything(wrapped["train"]), everything(wrapped["test"])
    assert not train.pop("corrupted_x").any()
    assert equal(train, everything(splits["train"]))
    assert 15 < int(test["corrupted_x"].sum()) < 45
    assert with_corruptions(splits, [], FIELDS, 0) == splits


def test_few_labels_and_corruption_meet_in_either_order():
    item = Corruption("x", "swapped", 0.5)
    inner, outer = with_labels(corrupt(make(), item), 20), corrupt(with_labels(make(), 20), item)
    assert equal(everything(inner), everything(outer))
    assert int(everything(outer)["labelled"].sum()) == 20


@pytest.mark.parametrize("kind", ["noise", "missing", "swapped"])
@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_policies_for_bad_samples_fit_inside_and_outside(kind, policy):
    split = make()
    split.arrays["x"].array[::10] = np.nan
    item = Corruption("x", kind, 0.6)
    repaired = 0 if kind == "noise" else int((corrupt(split, item).chosen["x"][::10] >= 0).sum())
    outside, inside = with_policy(corrupt(split, item), policy, 0.2), corrupt(with_policy(split, policy, 0.2), item)
    for wrapped, left in ((outside, 180 + repaired), (inside, 180)):
        one, two = everything(wrapped, 200), everything(wrapped, 7)
        assert torch.isfinite(one["x"]).all()
        if policy == "skip":
            assert len(one["id"]) == left
            assert equal(one, two)
        else:
            assert len(one["id"]) == 200
            assert sorted(zip(one["id"].tolist(), one["x"].tolist(), strict=True)) == sorted(
                zip(two["id"].tolist(), two["x"].tolist(), strict=True)
            )


def test_a_bad_row_still_raises_and_the_row_it_was_meant_for_takes_the_next():
    split = make(rows=30)
    split.arrays["x"].array[4] = np.nan
    wrapped = corrupt(with_policy(split, "raise"), Corruption("x", "swapped", 1.0))
    for row in set(range(30)) - {4}:
        assert torch.isfinite(wrapped[row]["x"]).all()
    with pytest.raises(DataError, match=f"bad sample {split.ids[4]} .*NaN"):
        wrapped[4]


def test_a_lone_corrupted_row_takes_from_its_neighbour():
    split = make(rows=40)
    draws = [corrupt(split, Corruption("x", "swapped", 0.02), seed=seed) for seed in range(60)]
    lone = next(wrapped for wrapped in draws if (wrapped.chosen["x"] >= 0).sum() == 1)
    row = int((lone.chosen["x"] >= 0).argmax())
    assert torch.equal(lone[row]["x"], split[(row + 1) % 40]["x"])
    with pytest.raises(DataError, match="has one row"):
        corrupt(make(rows=1), Corruption("x", "swapped", 1.0))


def test_no_readable_donor_is_an_error():
    split = make(rows=5)
    split.arrays["x"].array[1:] = np.nan
    with pytest.raises(DataError, match="no other row can be read"):
        corrupt(split, Corruption("x", "swapped", 1.0))[0]
    split.arrays["x"].array[:] = np.nan
    with pytest.raises(DataError, match="noise has no scale"):
        corrupt(split, Corruption("x", "noise", 1.0))


def test_draws_are_uniform_and_differ_between_keys():
    ids = np.arange(20000)
    for key in (0, 1, 2**64 - 1):
        counts = np.histogram(uniform_of(ids, key), bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 50
    assert abs(np.corrcoef(uniform_of(ids, 1), uniform_of(ids, 2))[0, 1]) < 0.03
    assert uniform_of(np.array([7]), 3)[0] == uniform_of(ids, 3)[7]


def test_splits_can_be_read_by_worker_processes():
    split = corrupt(make(rows=40), Corruption("x", "noise", 0.5), Corruption("y", "swapped", 0.5))
    assert equal(everything(split, 8), everything(split, 8, num_workers=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "z"}, "no field 'z'; fields: x, y"),
        ({"field": "text_mas"}, "did you mean 'text_mask'"),
        ({"field": "text"}, "noise needs numbers, but 'text' is int64"),
        ({"kind": "blur"}, "'blur' is none of noise, missing, swapped"),
        ({"fraction": 1.1}, r"fraction: expected a number in \[0, 1\], found 1.1"),
        ({"fraction": float("nan")}, "fraction: expected"),
        ({"severity": -1.0}, "severity: expected"),
        ({"severity": float("inf")}, "severity: expected"),
        ({"splits": ("trian",)}, "no split 'trian'; did you mean 'train'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(DataError, match=message):
        corrupt(make(), Corruption(**{"field": "x", "kind": "noise", "fraction": 0.5} | options))


def test_all_mistakes_are_named_at_once():
    wrong = [Corruption("x", "noise", 0.6), Corruption("x", "missing", 0.6), Corruption("q", "missing", 2)]
    with pytest.raises(DataError) as error:
        with_corruptions({"train": make()}, wrong, FIELDS, 0)
    for part in ("take 1.2 of the rows of 'train'", "corruptions[2].field", "corruptions[2].fraction"):
        assert part in str(error.value)
    with pytest.raises(DataError, match="no split 'train'"):
        with_corruptions({"test": make("test")}, [Corruption("x", "noise", 0.5)], FIELDS, 0)


def test_the_fingerprint_changes_with_every_part():
    base = Corruption("x", "noise", 0.5)
    others = [
        Corruption("y", "noise", 0.5),
        Corruption("x", "missing", 0.5),
        Corruption("x", "noise", 0.4),
        Corruption("x", "noise", 0.5, 2.0),
        Corruption("x", "noise", 0.5, splits=("test",)),
    ]
    prints = [fingerprint_of([item], 0) for item in (base, *others)] + [
        fingerprint_of([base], 1),
        fingerprint_of([], 0),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint_of([Corruption("x", "noise", 0.5)], 0) == prints[0]
