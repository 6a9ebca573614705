"""`avmnist` from look-alikes of the original files and of the original arrays."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import soundfile
import torch

from moekd.data import make_loader, prepare
from moekd.data.avmnist import AVMNIST, permutation_of_group
from moekd.data.avmnist_files import principal_components, read_idx
from moekd.errors import DataError


def write_idx(path, array):
    data = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def files(tmp_path):
    """Digits, recordings and noise with the names of the original files."""
    generator = np.random.default_rng(0)
    for part, count, suffix in (("train", 120, ".gz"), ("t10k", 30, "")):
        labels = np.arange(count) % 10
        write_idx(
            tmp_path / f"mnist/{part}-images-idx3-ubyte{suffix}", generator.integers(0, 256, (count, 28, 28), np.uint8)
        )
        write_idx(tmp_path / f"mnist/{part}-labels-idx1-ubyte{suffix}", labels.astype(np.uint8))
    (tmp_path / "fsdd/recordings").mkdir(parents=True)
    for digit in range(10):
        for take in (0, 5, 10):
            tone = np.sin(2 * np.pi * (200 + 100 * digit) * np.arange(3000 + 600 * digit) / 8000)
            soundfile.write(tmp_path / f"fsdd/recordings/{digit}_jo_{take}.wav", 0.3 * tone, 8000)
    (tmp_path / "esc/audio").mkdir(parents=True)
    for fold in range(1, 6):
        for target in (0, 3, 10):
            noise = generator.normal(0, 0.1, 44100)
            soundfile.write(tmp_path / f"esc/audio/{fold}-10{target}-A-{target}.wav", noise, 44100)
    return tmp_path


def test_original_files(files, tmp_path):
    root = prepare("avmnist", files, tmp_path / "out", progress=False)
    data = AVMNIST(preset="hard", root=str(root))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 110, "val": 10, "test": 30}
    batch = next(iter(make_loader(data.splits["test"], 30, shuffle=False)))
    assert batch["audio"].shape == (30, 1, 112, 112)
    for name, takes in (("train", {10}), ("val", {5}), ("test", {0})):
        pairs = np.load(root / f"pairs_{name}.npy")
        recordings = sorted((files / "fsdd/recordings").glob("*.wav"))
        chosen = [recordings[index].stem.split("_") for index in pairs["audio"]]
        assert {int(take) for _, _, take in chosen} == takes
        assert [int(digit) for digit, _, _ in chosen] == pairs["label"].tolist()
    noise = np.load(root / "noise.npy")
    assert noise.shape == (10, 16128)
    assert prepare("avmnist", files, tmp_path / "out", progress=False) == root


def test_pairs_are_the_same_every_time(files, tmp_path):
    first = prepare("avmnist", files, tmp_path / "one", progress=False)
    second = prepare("avmnist", files, tmp_path / "two", progress=False)
    assert AVMNIST(root=str(first)).fingerprint() == AVMNIST(root=str(second)).fingerprint()


def test_missing_parts_are_all_named(files, tmp_path):
    (files / "mnist/t10k-labels-idx1-ubyte").unlink()
    for path in (files / "esc/audio").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"MNIST test labels .*ESC-10 clips"):
        prepare("avmnist", files, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_digit_without_test_recording_is_named(files, tmp_path):
    (files / "fsdd/recordings/7_jo_0.wav").unlink()
    with pytest.raises(DataError, match="no recording of digit 7 for test"):
        prepare("avmnist", files, tmp_path / "out", progress=False)


def test_damaged_idx_files_are_named(tmp_path):
    write_idx(tmp_path / "a-ubyte", np.zeros((5, 4), np.uint8))
    (tmp_path / "a-ubyte").write_bytes((tmp_path / "a-ubyte").read_bytes()[:-1])
    (tmp_path / "b.gz").write_bytes(b"no gzip")
    (tmp_path / "c").write_bytes(b"")
    for name in ("a-ubyte", "b.gz", "c"):
        with pytest.raises(DataError, match=name):
            read_idx(tmp_path / name)


def test_principal_components_are_orthonormal_and_ordered():
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28)).astype(np.uint8)
    images[:, :14] = images[:, :1, :1]
    mean, components = principal_components(images, 8)
    assert np.allclose(components @ components.T, np.eye(8), atol=1e-4)
    variance = ((images.reshape(300, -1) / 255 - mean) @ components.T).var(axis=0)
    assert (np.diff(variance) <= 1e-6).all()


@pytest.fixture
def arrays(tmp_path):
    """Arrays in the layout of the original AV-MNIST download."""
    folder = tmp_path / "avmnist"
    generator = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 10)):
        (folder / "image").mkdir(parents=True, exist_ok=True)
        (folder / "audio").mkdir(exist_ok=True)
        np.save(folder / f"image/{part}_data.npy", generator.normal(size=(count, 784)).astype(np.float32))
        np.save(folder / f"audio/{part}_data.npy", generator.integers(0, 200, (count, 112, 112)).astype(np.uint8))
        np.save(folder / f"{part}_labels.npy", np.arange(count) % 10)
    return tmp_path


def test_original_arrays(arrays, tmp_path):
    root = prepare("avmnist", arrays, tmp_path / "out", progress=False)
    data = AVMNIST(preset="original", root=str(root), group=2)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 42, "val": 14, "test": 14}
    order = permutation_of_group(70, 2)
    assert sorted(data.splits["val"].ids) == sorted(order[42:56])
    sample = data.splits["train"][3]
    source = [np.load(arrays / f"avmnist/image/{part}_data.npy") for part in ("train", "test")]
    raw = np.concatenate(source)[int(sample["id"])]
    expected = torch.from_numpy((raw - raw.min()) / (raw.max() - raw.min())).view(1, 28, 28)
    assert torch.allclose(sample["image"], expected, atol=0.5 / 255 + 1e-6)
    assert int(sample["label"]) == (int(sample["id"]) % 60) % 10
    assert AVMNIST(preset="original", root=str(root), train=5).splits["train"].ids.shape == (5,)


def test_groups_are_successive_draws_of_one_seeded_generator():
    np.random.seed(19980427)
    drawn = [np.random.permutation(50) for _ in range(3)]
    assert all((permutation_of_group(50, group) == drawn[group]).all() for group in range(3))


def test_wrong_preset_or_incomplete_arrays(arrays, tmp_path):
    root = prepare("avmnist", arrays, tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="preset original only"):
        AVMNIST(preset="hard", root=str(root))
    (arrays / "avmnist/test_labels.npy").unlink()
    with pytest.raises(DataError, match=r"lacks test_labels.npy"):
        prepare("avmnist", arrays, tmp_path / "again", progress=False)


def test_wrong_shapes_are_named(arrays, tmp_path):
    np.save(arrays / "avmnist/audio/test_data.npy", np.zeros((10, 100, 112), np.uint8))
    with pytest.raises(DataError, match=r"audio/test_data.npy has shape \(10, 100, 112\)"):
        prepare("avmnist", arrays, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_pickled_arrays_are_refused(arrays, tmp_path):
    np.save(arrays / "avmnist/test_labels.npy", np.array([{}] * 10, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="can't be read as an array"):
        prepare("avmnist", arrays, tmp_path / "out", progress=False)


def test_unprepared_and_foreign_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEKD_DATA_HOME", str(tmp_path))
    with pytest.raises(DataError, match="moekd data prepare avmnist"):
        AVMNIST()
    (tmp_path / "avmnist").mkdir()
    (tmp_path / "avmnist/manifest.json").write_text("{")
    with pytest.raises(DataError, match="can't be read as a manifest"):
        AVMNIST()
    (tmp_path / "avmnist/manifest.json").write_text('{"version": 1, "name": "other", "files": {}}')
    with pytest.raises(DataError, match="describes 'other'"):
        AVMNIST()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no known layout"):
        prepare("avmnist", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        prepare("avmnist", tmp_path / "absent", tmp_path / "out")
    with pytest.raises(DataError, match="give their folder"):
        prepare("avmnist", None, tmp_path / "out")
    with pytest.raises(DataError, match="needs no preparation"):
        prepare("emoji", None)


def test_an_output_with_other_files_is_left_alone(arrays, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already and is not empty"):
        prepare("avmnist", arrays, tmp_path / "out", progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]
