"""`crisismmd` from look-alikes of the original files and of features."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image

from moekd.data import prepare
from moekd.data.crisismmd import CrisisMMD
from moekd.data.crisismmd_prepare import CATEGORIES, normalise_tweet
from moekd.errors import DataError

RNG = np.random.default_rng(0)
H5PY = importlib.util.find_spec("h5py") is not None


@pytest.fixture
def crisis(tmp_path):
    root = tmp_path / "CrisisMMD_v2.0"
    (root / "crisismmd_datasplit_all").mkdir(parents=True)
    rows = []
    for row in range(12):
        image = f"data_image/flood/10_4_2017/{row}_0.jpg"
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(root / image)
        text = f"RT @user{row}: caf\u00e9 isn't open \u2026 https://t.co/x{row} www.a.org"
        rows.append([str(900 + row), text, image, CATEGORIES[row % 8]])
    parts = {"train": rows[:6], "dev": [*rows[6:9], [*rows[0][:2], rows[6][2], CATEGORIES[7]]], "test": rows[9:]}
    for part, lines in parts.items():
        text = "\n".join("\t".join(["flood", *line, "label_text"]) for line in lines)
        header = "event_name\ttweet_id\ttweet_text\timage\tlabel\tlabel_text\n"
        file = root / "crisismmd_datasplit_all" / f"task_humanitarian_text_img_{part}.tsv"
        file.write_text(header + text + "\n", encoding="utf-8")
    return root


def test_crisismmd_from_the_original_files(crisis, tmp_path):
    data = CrisisMMD(root=str(prepare("crisismmd", crisis, tmp_path / "out", progress=False)))
    assert sum(len(split) for split in data.splits.values()) == 12
    split = data.splits["train"]
    batch = split.__getitems__(list(range(len(split))))
    assert batch["image"].shape == (7, 3, 224, 224)
    text = bytes((batch["text"][0][batch["text_mask"][0]] - 1).tolist()).decode()
    assert text == "RT @USER: caf\u00e9 is n't open ... HTTPURL"
    assert set(split.table["tweet"]) <= {str(900 + row) for row in range(12)}
    first = data.splits
    labels = {t: y for s in first.values() for t, y in zip(s.table["tweet"], s.labels.tolist(), strict=True)}
    assert labels["900"] == 7, "of two rows of a tweet the first one counts: dev comes before train"


def test_tweets_are_normalised():
    assert normalise_tweet("I'm  @a_b, we can't \u2019 &amp; \U0001f525!") == "I 'm @USER, we ca n't ' & :fire: !"
    assert normalise_tweet("https://t.co/abc") == "."


def test_crisismmd_from_features(tmp_path):
    source = tmp_path / "features"
    source.mkdir()
    np.save(source / "image_features.npy", RNG.normal(size=(20, 2048)).astype(np.float32))
    np.save(source / "text_features.npy", RNG.normal(size=(20, 768)).astype(np.float32))
    np.save(source / "labels.npy", np.arange(20) % 8)
    data = CrisisMMD(root=str(prepare("crisismmd", source, tmp_path / "out", progress=False)))
    batch = data.splits["test"].__getitems__([0, 1])
    assert batch["image"].shape == (2, 2048)
    assert batch["text"].shape == (2, 768)
    raw = np.load(source / "text_features.npy")[batch["id"]]
    assert np.allclose(batch["text"], raw)
    np.save(source / "labels.npy", np.arange(19) % 8)
    with pytest.raises(DataError, match=r"image_features.npy has shape \(20, 2048\); labels.npy has 19 rows"):
        prepare("crisismmd", source, tmp_path / "other", progress=False)


def test_crisismmd_says_what_is_missing(crisis, tmp_path):
    (crisis / "data_image/flood/10_4_2017/7_0.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 pictures, the first: data_image/flood/10_4_2017/7_0\.jpg"):
        prepare("crisismmd", crisis, tmp_path / "out", progress=False)
    file = next(crisis.rglob("*dev.tsv"))
    file.write_text(file.read_text().replace("vehicle_damage", "car_damage").replace("not_humanitarian", "none"))
    with pytest.raises(DataError, match=r"dev.tsv, line \d: unknown category"):
        prepare("crisismmd", crisis, tmp_path / "out", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no known layout of crisismmd"):
        prepare("crisismmd", tmp_path / "empty", tmp_path / "out")
