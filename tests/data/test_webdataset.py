"""`webdataset`: tar files in any order, with or without labels, resumable, over several processes."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from moekd.config import build, parse_yaml, validate_component
from moekd.data import DATASETS, make_loader, with_policy
from moekd.data.fields.image import ImageField
from moekd.data.fields.text import TextField
from moekd.data.fields.vector import VectorField
from moekd.data.tokenizers import BytesTokenizer
from moekd.data.webdataset import WebDataset
from moekd.errors import DataError
from tests.data.tar_files import png, sample, write_shards, write_tar

SPLIT = {"train": "train-{0000..0005}.tar", "val": "val-0000.tar", "test": "test-*.tar"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    write_shards(path, "train", 6, 10)
    write_shards(path, "val", 1, 6, start=100)
    write_shards(path, "test", 2, 5, start=200)
    return path


def fields(caption="txt"):
    text = TextField(column=caption, tokenizer=BytesTokenizer(24, lower=False))
    return {"image": ImageField(8, column="jpg;png"), "caption": text, "vector": VectorField(column="npy")}


def open_set(folder, **options):
    return WebDataset(**({"path": str(folder), "fields": fields(), "split": SPLIT, "label": "cls"} | options))


def numbers(batch):
    """Sample numbers as the pixels have them; train holds 0 to 59 in the order of ids."""
    return (batch["image"][:, 0, 0, 0] * 255).round().long().tolist()


def texts(batch, field="caption"):
    return [bytes((row[row > 0] - 1).tolist()).decode() for row in batch[field]]


def test_samples_come_back_whole(folder):
    data = open_set(folder)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 60, "val": 6, "test": 10}
    assert data.class_names == ["0", "1", "2"]
    seen = []
    for batch in make_loader(data.splits["train"], 7, shuffle=True, seed=3):
        seen += numbers(batch)
        assert texts(batch) == [f"picture number {number}" for number in numbers(batch)]
        assert batch["vector"].tolist() == [[number, -number] for number in numbers(batch)]
        assert batch["label"].tolist() == [number % 3 for number in numbers(batch)]
        assert batch["id"].tolist() == numbers(batch)
    assert sorted(seen) == list(range(60))
    assert numbers(data.splits["test"].__getitems__([9, 0])) == [209, 200]
    for name, spec in data.fields.items():
        assert batch[name].shape[1:] == spec.shape


def test_the_order_mixes_files_within_windows_and_can_be_resumed(folder):
    split = open_set(folder).splits["train"]
    whole = [batch["id"].tolist() for batch in make_loader(split, 8, shuffle=True, seed=1, epoch=4)]
    ids = [i for batch in whole for i in batch]
    assert ids != sorted(ids)
    assert len({i // 10 for i in ids[:40]}) == 4, "a window of four files first"
    assert len({i // 10 for i in ids[:8]}) > 1
    tail = [batch["id"].tolist() for batch in make_loader(split, 8, shuffle=True, seed=1, epoch=4, start_batch=3)]
    assert tail == whole[3:]
    ranks = [list(make_loader(split, 8, shuffle=True, seed=1, epoch=4, rank=r, world=2, num_workers=1)) for r in (0, 1)]
    joined = [a["id"].tolist() + b["id"].tolist() for a, b in zip(*ranks, strict=True)]
    assert joined == whole


def test_json_values_as_captions_and_labels(folder):
    data = open_set(folder, fields=fields("json.caption"), label="json.meta.kind")
    assert data.class_names == ["cat", "dog", "emu"]
    batch = data.splits["val"].__getitems__([0, 5])
    assert texts(batch) == ["no. 100", "no. 105"]
    assert batch["label"].tolist() == [100 % 3, 105 % 3]


def test_fractions_of_the_training_files(folder):
    data = open_set(folder, split={"train": ["train-0000.tar", "train-{0003,0005}.tar"], "val": 0.2, "test": 0.2})
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "val": 6, "test": 6}
    assert {i // 10 for i in numbers(data.splits["train"].__getitems__(list(range(18))))} == {0, 3, 5}


def test_from_yaml(folder):
    raw = f"""
kind: webdataset
path: {folder}
split: {{train: "train-{{0000..0005}}.tar", val: val-0000.tar, test: ["test-0000.tar", "test-0001.tar"]}}
fields:
  image: {{kind: image, column: png, size: 8}}
  caption: {{kind: text, column: txt, tokenizer: {{kind: bytes, lower: false, context: 32}}}}
"""
    problems: list[str] = []
    data = build(validate_component(DATASETS, parse_yaml(raw, "test"), "data", problems), DATASETS)
    assert not problems
    assert (data.num_classes, data.splits["train"].labels) == (0, None)
    batch = data.splits["train"].__getitems__([0, 1])
    assert "label" not in batch
    assert batch["labelled"].tolist() == [False, False]


def test_a_labelled_test_split_beside_training_files_without_labels(tmp_path):
    bare = {f"{n}": {key: value for key, value in sample(n).items() if key != "cls"} for n in range(6)}
    write_tar(tmp_path / "train.tar", bare)
    write_tar(tmp_path / "val.tar", {f"{n}": value for n, value in enumerate(bare.values())})
    write_tar(tmp_path / "test.tar", {f"{n}": sample(n) for n in range(6)})
    split = {"train": "train.tar", "val": "val.tar", "test": "test.tar"}
    names = ["a cat", "a dog", "an emu"]
    data = open_set(tmp_path, split=split, classes=names, labelled_splits=["test"])
    assert data.class_names == names
    assert [data.splits[name].labels is None for name in ("train", "val", "test")] == [True, True, False]
    assert data.splits["test"].labels.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(DataError, match="no column 'cls'"):
        open_set(tmp_path, split=split, classes=names)
    with pytest.raises(DataError, match=r"labelled_splits: no split 'tset'; did you mean 'test'"):
        open_set(tmp_path, split=split, classes=names, labelled_splits=["tset", "test"]).splits  # noqa: B018


def test_bad_samples_follow_the_policy(tmp_path):
    """D1, D4: damaged and missing members follow the policy."""
    samples = {f"{number}": sample(number) for number in range(8)}
    samples["2"]["png"] = b"no picture"
    samples["4"]["json"] = b"{cut"
    del samples["6"]["txt"]
    write_tar(tmp_path / "a.tar", samples)
    write_tar(tmp_path / "b.tar", {f"{number}": sample(number) for number in range(3)})
    split = {"train": "a.tar", "val": "b.tar", "test": "c.tar"}
    write_tar(tmp_path / "c.tar", {f"{number}": sample(number) for number in range(3)})
    inputs = fields() | {"other": TextField("json.caption", BytesTokenizer(8))}
    train = open_set(tmp_path, fields=inputs, split=split).splits["train"]
    with pytest.raises(DataError, match=r"bad sample 2 .*a.tar, key '2'.*field 'image'.*can't be decoded"):
        train.__getitems__([0, 2])
    kept = with_policy(train, "skip", max_bad_fraction=0.5).__getitems__(list(range(8)))
    assert kept["id"].tolist() == [0, 1, 3, 5, 7]
    _, bad = train.read(list(range(8)))
    assert "json can't be read" in bad[4]
    assert "no 'txt'" in bad[6]


def test_the_index_is_kept_and_made_anew_when_the_file_changes(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{n}": sample(n) for n in range(4)})
    split = {"train": "a.tar", "val": 0.25, "test": 0.25}
    first = open_set(tmp_path, split=split)
    note = tmp_path / "a.tar.index.json"
    before = note.stat().st_mtime_ns
    assert open_set(tmp_path, split=split).fingerprint() == first.fingerprint()
    assert note.stat().st_mtime_ns == before
    write_tar(path, {f"{n}": sample(n + 10) for n in range(8)})
    changed = open_set(tmp_path, split=split)
    assert sum(map(len, changed.splits.values())) == 8
    assert changed.fingerprint() != first.fingerprint()
    (tmp_path / "a.tar.index.npy").write_bytes(b"damaged")
    assert open_set(tmp_path, split=split).fingerprint() == changed.fingerprint()
    moved = open_set(tmp_path, split=split, index_dir=str(tmp_path / "notes"))
    assert moved.fingerprint() == changed.fingerprint()
    assert len(list((tmp_path / "notes").iterdir())) == 4


def test_a_file_that_changes_or_vanishes_during_a_run_is_noticed(tmp_path):
    """D2: a shard that vanishes is named."""
    path = write_tar(tmp_path / "a.tar", {f"{n}": sample(n) for n in range(8)})
    data = open_set(tmp_path, split={"train": "a.tar", "val": 0.25, "test": 0.25})
    split = data.splits["train"]
    moved = path.rename(tmp_path / "b.tar")
    data.tables["train"]._open.clear()
    with pytest.raises(DataError, match=r"a.tar does not exist any more"):
        split.__getitems__([0])
    write_tar(path, {f"{n}": sample(n + 1) for n in range(8)})
    with pytest.raises(DataError, match=r"a.tar changed since the run started"):
        split.__getitems__([0])
    moved.replace(path)
    assert len(split.__getitems__([0])["id"]) == 1
    (tmp_path / "a.tar.index.npy").unlink()
    data.tables["train"]._open.clear()
    with pytest.raises(DataError, match=r"index.npy is gone or damaged"):
        split.__getitems__([0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable_asks_for_index_dir(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{n}": sample(n) for n in range(4)})
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataError, match="set 'index_dir'"):
            open_set(tmp_path, split={"train": "a.tar", "val": 0.25, "test": 0.25})
    finally:
        tmp_path.chmod(0o700)


def test_training_samples_without_a_label_are_unlabelled_rows(tmp_path):
    samples = {f"{n}": sample(n) for n in range(8)}
    del samples["3"]["cls"]
    write_tar(tmp_path / "a.tar", samples)
    write_tar(tmp_path / "b.tar", {f"{n}": sample(n) for n in range(3)})
    write_tar(tmp_path / "c.tar", {f"{n}": sample(n) for n in range(3)})
    split = {"train": "a.tar", "val": "b.tar", "test": "c.tar"}
    train = open_set(tmp_path, split=split).splits["train"]
    assert train.labels.tolist() == [0, 1, 2, -1, 1, 2, 0, 1]
    assert train.__getitems__([2, 3])["labelled"].tolist() == [True, False]
    with pytest.raises(DataError, match="empty label in split 'val'"):
        open_set(tmp_path, split=split | {"train": "b.tar", "val": "a.tar"}).splits  # noqa: B018


def test_labels_are_read_once(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{n}": sample(n) for n in range(8)})
    split = {"train": "a.tar", "val": 0.25, "test": 0.25}
    labels = open_set(tmp_path, split=split).labels["train"]
    note = next(tmp_path.glob("a.tar.column-*.json"))
    assert json.loads(note.read_text())["value"] == [n % 3 for n in range(8)]
    assert np.array_equal(open_set(tmp_path, split=split).labels["train"], labels)


def test_mistakes_say_what_to_do(folder, tmp_path):
    with pytest.raises(DataError, match=r"no column 'txd' \(field 'caption'\); did you mean 'txt'"):
        open_set(folder, fields=fields("txd"))
    with pytest.raises(DataError, match=r"no data file at .*train-0006.tar"):
        open_set(folder, split=SPLIT | {"train": "train-{0000..0006}.tar"})
    with pytest.raises(DataError, match="none for train"):
        open_set(folder, split={"val": "val-0000.tar"})
    with pytest.raises(DataError, match="no split test"):
        open_set(folder, split={"train": "train-0000.tar", "val": 0.2}).splits  # noqa: B018
    with pytest.raises(DataError, match="is named twice"):
        open_set(folder, split=SPLIT | {"train": ["train-0000.tar", "train-*.tar"]})
    with pytest.raises(DataError, match="set 'cache_dir'"):
        open_set("https://example.org/data")
    with pytest.raises(DataError, match="expected at least 2 names"):
        open_set(folder, classes=["one"])
    with pytest.raises(DataError, match="'label' names no column"):
        open_set(folder, label=None, labelled_splits=["test"])
    write_tar(tmp_path / "a.tar", {f"{n}": {"png": png(n)} for n in range(3)})
    with pytest.raises(DataError, match="expected a text or a number"):
        open_set(tmp_path, fields={"image": fields()["image"]}, label="png", split={"train": "a.tar"})


def test_pictures_survive_in_worker_processes(folder):
    split = open_set(folder).splits["train"]
    split.__getitems__([0])
    batches = list(make_loader(split, 16, shuffle=True, num_workers=2))
    assert sorted(i for batch in batches for i in numbers(batch)) == list(range(60))
    assert all(torch.isfinite(batch["image"]).all() for batch in batches)
