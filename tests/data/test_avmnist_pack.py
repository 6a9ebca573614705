"""`avmnist` from the pack of real digits, speech and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moekd.data import make_loader, prepare
from moekd.data.avmnist import AVMNIST
from moekd.errors import DataError

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def root(data_root, tmp_path_factory):
    return prepare("avmnist", data_root / "avmnist", tmp_path_factory.mktemp("prepared") / "avmnist", progress=False)


def small(root, preset="hard", **options):
    return AVMNIST(preset=preset, root=str(root), **{"train": 64, "val": 16, "test": 32} | options)


def test_shapes_and_value_ranges(root):
    data = small(root)
    batch = next(iter(make_loader(data.splits["train"], 64, shuffle=False)))
    assert batch["image"].shape == (64, 1, 28, 28)
    assert batch["audio"].shape == (64, 1, 112, 112)
    for field in ("image", "audio"):
        assert batch[field].dtype == torch.float32
        assert batch[field].min() >= 0
        assert batch[field].max() <= 1
    assert data.num_classes == 10
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 64, "val": 16, "test": 32}


def test_test_pairs_are_unseen(root):
    pairs = {name: np.load(root / f"pairs_{name}.npy") for name in ("train", "val", "test")}
    assert {name: len(table) for name, table in pairs.items()} == {"train": 55000, "val": 5000, "test": 10000}
    for other in ("val", "test"):
        assert not set(pairs["train"]["audio"]) & set(pairs[other]["audio"])
        assert not set(pairs["train"]["noise"]) & set(pairs[other]["noise"])
    assert not set(pairs["train"]["image"]) & set(pairs["val"]["image"])


def test_presets_change_what_they_say(root):
    easy, hard, image, audio = (
        small(root, preset).splits["test"].__getitems__(list(range(32)))
        for preset in ("easy", "hard", "asym_image", "asym_audio")
    )
    assert torch.equal(easy["id"], hard["id"])
    assert torch.equal(easy["image"], image["image"])
    assert torch.equal(hard["image"], audio["image"])
    assert torch.equal(easy["audio"], audio["audio"])
    assert torch.equal(hard["audio"], image["audio"])
    assert hard["image"].var() < 0.7 * easy["image"].var()
    assert hard["audio"].mean() > easy["audio"].mean() + 0.1
    assert torch.equal(small(root, "asym").splits["test"][0]["audio"], image["audio"][0])


def test_a_smaller_subset_is_part_of_a_larger_one_and_reuses_its_cache(root):
    large = small(root, train=64, subset_seed=5).splits["train"]
    few = small(root, train=8, subset_seed=5).splits["train"]
    assert few.ids.tolist() == large.ids[:8].tolist()
    assert torch.equal(few[7]["audio"], large[7]["audio"])
    assert [path.name for path in (root / "cache").glob("noisy-train-5-*")] == ["noisy-train-5-64.npy"]
    assert set(small(root, subset_seed=6).splits["train"].ids) != set(large.ids)


def test_options_change_the_fingerprint(root):
    prints = {small(root).fingerprint(), small(root, "easy").fingerprint(), small(root, train=32).fingerprint()}
    assert len(prints) == 3
    assert small(root).fingerprint() in prints


def test_a_damaged_file_is_named(root, tmp_path):
    for path in root.glob("*.*"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "wave.npy").unlink()
    with pytest.raises(DataError, match=r"wave.npy is missing"):
        small(tmp_path)
    (tmp_path / "wave.npy").write_bytes((root / "wave.npy").read_bytes()[:-10])
    with pytest.raises(DataError, match=r"wave.npy is damaged"):
        small(tmp_path)


def test_impossible_requests_are_refused(root):
    with pytest.raises(DataError, match="90000 pairs asked for"):
        small(root, train=90000).splits  # noqa: B018
    with pytest.raises(DataError, match="every preset but original"):
        small(root, "original")
