"""The shipped emoji set."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from moekd.data import DATASETS, make_loader
from moekd.data.emoji import Emoji, pack_folder
from moekd.errors import DataError


@pytest.fixture(scope="module")
def emoji():
    return Emoji()


def test_splits_are_disjoint_by_concept_and_style(emoji):
    concepts = {name: set(split.table["concept"]) for name, split in emoji.splits.items()}
    styles = {name: set(split.table["style"]) for name, split in emoji.splits.items()}
    assert set(concepts) == {"train", "val", "test", "test_unseen_style", "test_unseen_both"}
    for first, second in [("train", "val"), ("train", "test"), ("val", "test"), ("train", "test_unseen_both")]:
        assert not concepts[first] & concepts[second]
    assert concepts["test_unseen_style"] <= concepts["train"]
    assert concepts["test_unseen_both"] <= concepts["test"]
    assert styles["train"] == styles["val"] == styles["test"] == set(emoji.train_styles)
    assert styles["test_unseen_style"] == styles["test_unseen_both"] == {"openmoji"}
    total = len(concepts["train"]) + len(concepts["val"]) + len(concepts["test"])
    assert total == 1914
    assert abs(len(concepts["test"]) / total - 0.2) < 0.01
    assert abs(len(concepts["val"]) / total - 0.1) < 0.01


def test_every_class_is_trained(emoji):
    assert emoji.num_classes == 98
    assert set(emoji.splits["train"].labels) == set(range(98))
    names = [emoji.class_names[label] for label in emoji.splits["test"].labels]
    assert names == list(emoji.splits["test"].table["subgroup"])


def test_batches_hold_images_and_text(emoji):
    split = emoji.splits["train"]
    batch = next(iter(make_loader(split, 16, shuffle=True)))
    assert batch["image"].shape == (16, 3, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    assert torch.allclose(batch["text"].norm(dim=1), torch.ones(16), atol=2e-3)
    row = split.row_of(int(batch["id"][0]))
    assert split.describe(int(batch["id"][0])) == f"{split.table['name'][row]} ({split.table['style'][row]})"
    for name, spec in emoji.fields.items():
        assert batch[name].shape[1:] == spec.shape


def test_pictures_of_a_concept_share_text_and_label(emoji):
    split = emoji.splits["train"]
    rows = np.flatnonzero(np.array(split.table["concept"]) == split.table["concept"][0]).tolist()
    batch = split.__getitems__(rows)
    assert len(rows) > 1
    assert (batch["text"] == batch["text"][0]).all()
    assert batch["label"].unique().numel() == 1
    assert not torch.equal(batch["image"][0], batch["image"][1])


def test_normalisation_and_group_target(emoji):
    grouped = Emoji(target="group", mean=[0.5, 0.5, 0.5], std=[0.5, 0.25, 0.5])
    assert grouped.num_classes == 9
    plain, scaled = emoji.splits["val"][7]["image"], grouped.splits["val"][7]["image"]
    assert torch.allclose((plain[1] - 0.5) / 0.25, scaled[1])
    assert torch.allclose((plain[0] - 0.5) / 0.5, scaled[0])


def test_options_change_the_fingerprint(emoji):
    assert Emoji().fingerprint() == emoji.fingerprint()
    others = [Emoji(split_seed=1), Emoji(max_train=100), Emoji(target="group"), Emoji(mean=[0, 0, 0], std=[1, 1, 1])]
    assert len({emoji.fingerprint(), *(other.fingerprint() for other in others)}) == 5
    assert len(others[1].splits["train"]) == 100


def test_wrong_styles_are_refused():
    with pytest.raises(DataError, match="did you mean 'twemoji'"):
        Emoji(train_styles=["twemojy"]).splits  # noqa: B018
    with pytest.raises(DataError, match="both train_styles and unseen_styles"):
        Emoji(train_styles=["noto"], unseen_styles=["noto"])
    with pytest.raises(DataError, match="mean needs 3 values"):
        Emoji(mean=[0.5])
    with pytest.raises(DataError, match="split 'train' is empty"):
        Emoji(train_styles=[]).splits  # noqa: B018


def test_without_unseen_styles_the_splits_are_left_out():
    assert set(Emoji(unseen_styles=[]).splits) == {"train", "val", "test"}


def test_licences_ship_beside_the_data_and_the_size_is_bounded():
    folder = pack_folder()
    text = (folder / "LICENSES.md").read_text(encoding="utf-8")
    for word in ["noto", "noto-v1", "twemoji", "openmoji", "fluent-emoji", "emojione", "emojibase", "Apache", "MIT"]:
        assert word in text
    assert "CC BY-SA 4.0" in text
    assert (folder / "README.md").is_file()
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) <= 12 * 2**20


def test_damage_is_noticed(tmp_path, monkeypatch):
    for path in pack_folder().iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "text.npz").read_bytes())
    data[1000] ^= 1
    (tmp_path / "text.npz").write_bytes(bytes(data))
    monkeypatch.setattr("moekd.data.emoji.pack_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"text.npz is damaged"):
        Emoji().splits  # noqa: B018


def test_loading_is_quick(emoji):
    start = time.perf_counter()
    for _ in make_loader(emoji.splits["train"], 128, shuffle=True):
        pass
    assert time.perf_counter() - start < 5
    assert DATASETS.get("emoji") is Emoji
