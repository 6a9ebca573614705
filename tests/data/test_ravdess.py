"""`ravdess` from a look-alike of the pack, and from the real pack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moekd.data import make_loader, prepare
from moekd.data.ravdess import Ravdess, split_actors
from moekd.errors import DataError

EMOTIONS = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]


def write_pack(folder, clips=8, actors=24, **changes):
    generator, rows = np.random.default_rng(0), actors * clips
    arrays = {
        "visual": generator.gamma(2, 1, (rows, 35)).astype(np.float32),
        "audio": generator.normal(-30, 9, (rows, 259)).astype(np.float32),
        "emotion": (np.arange(rows) % 8).astype(np.uint8),
        "actor": np.repeat(np.arange(1, actors + 1), clips).astype(np.uint8),
        "intensity": (1 + np.arange(rows) % 2).astype(np.uint8),
        "statement": np.ones(rows, np.uint8),
        "repetition": np.full(rows, 2, np.uint8),
        "emotions": np.array(EMOTIONS),
    }
    folder.mkdir(exist_ok=True)
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(folder / "ravdess.npz", **arrays)
    return arrays


@pytest.fixture
def root(tmp_path):
    write_pack(tmp_path / "pack")
    return prepare("ravdess", tmp_path / "pack", tmp_path / "ravdess")


def test_nobody_is_in_two_splits(root):
    data = Ravdess(root=str(root))
    actors = {name: set(split.table["actor"]) for name, split in data.splits.items()}
    assert {name: len(found) for name, found in actors.items()} == {"train": 14, "val": 5, "test": 5}
    assert set.union(*actors.values()) == set(range(1, 25))
    assert sum(len(split) for split in data.splits.values()) == 24 * 8
    assert data.class_names == EMOTIONS
    test = data.splits["test"]
    assert test.describe(int(test.ids[1])) == (
        f"actor {test.table['actor'][1]}, calm, intensity 2, statement 1, repetition 2"
    )
    assert [EMOTIONS[label] for label in test.labels] == test.table["emotion"]


@given(st.integers(0, 2**32), st.lists(st.integers(1, 99), min_size=3, max_size=40, unique=True))
def test_any_set_of_actors_is_cut_in_three(seed, actors):
    rows = np.repeat(actors, 2)
    parts, again = split_actors(rows, seed), split_actors(rows[::-1], seed)
    assert sorted(np.concatenate(list(parts.values()))) == sorted(actors)
    assert all((parts[name] == again[name]).all() for name in parts)
    count = max(1, round(0.2 * len(actors)))
    assert (len(parts["val"]), len(parts["test"])) == (count, count)
    assert len(parts["train"]) >= 1


@given(st.integers(0, 10**6))
def test_men_and_women_are_balanced(seed):
    for part in split_actors(np.arange(1, 25), seed).values():
        assert abs(int((part % 2 == 1).sum()) - int((part % 2 == 0).sum())) <= 1


def test_values_are_standardised_with_training_rows_alone(root, tmp_path):
    data = Ravdess(root=str(root))
    train = next(iter(make_loader(data.splits["train"], 10_000, shuffle=False)))
    for field, width in (("face", 35), ("audio", 259)):
        assert train[field].shape == (14 * 8, width)
        assert train[field].mean(dim=0).abs().max() < 1e-5
        assert (train[field].std(dim=0, correction=0) - 1).abs().max() < 1e-4
        test, recipe = data.splits["test"], data.input_recipe(field)
        raw = torch.from_numpy(np.load(root / f"{field}.npy")[test.ids[3]])
        expected = (raw - torch.tensor(recipe["mean"])) / torch.tensor(recipe["std"])
        assert torch.allclose(test[3][field], expected, atol=1e-4)


def test_the_split_seed_changes_the_fingerprint(root):
    prints = [Ravdess(seed, str(root)).fingerprint() for seed in (0, 1, 0)]
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual": None, "actor": None}, "lacks the arrays visual, actor"),
        ({"audio": np.zeros((192, 200))}, r"audio has shape \(192, 200\), expected \(192, 259\)"),
        ({"audio": np.full((192, 259), np.nan)}, "audio holds NaN"),
        ({"actor": np.zeros((192, 1))}, r"actor has shape \(192, 1\), expected \(192,\)"),
        ({"emotion": np.full(192, 8)}, "emotion lies outside 0 to 7"),
        ({"emotions": np.array([{}], dtype=object)}, "ravdess.npz can't be read"),
    ],
)
def test_wrong_packs_are_named(tmp_path, changes, message):
    write_pack(tmp_path / "pack", **changes)
    with pytest.raises(DataError, match=message):
        prepare("ravdess", tmp_path / "pack", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEKD_DATA_HOME", str(tmp_path))
    with pytest.raises(DataError, match="moekd data prepare ravdess"):
        Ravdess()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"ravdess.npz not found"):
        prepare("ravdess", tmp_path / "empty")
    write_pack(tmp_path / "two", actors=2)
    with pytest.raises(DataError, match="2 actors, at least 3"):
        Ravdess(root=str(prepare("ravdess", tmp_path / "two"))).splits  # noqa: B018


@pytest.mark.data
def test_the_real_pack(data_root, tmp_path):
    data = Ravdess(root=str(prepare("ravdess", data_root / "ravdess_au_mfcc", tmp_path / "ravdess")))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 840, "val": 300, "test": 300}
    assert data.class_names == EMOTIONS
    for split in data.splits.values():
        counts = np.bincount(split.labels)
        assert (counts[1:] == 2 * counts[0]).all()
    train, test = (data.splits[name].__getitems__(list(range(len(data.splits[name])))) for name in ("train", "test"))
    means = torch.stack([train["face"][train["label"] == label].mean(dim=0) for label in range(8)])
    nearest = torch.cdist(test["face"], means).argmin(dim=1)
    assert (nearest == test["label"]).float().mean() > 0.3
