"""`files`: from YAML to batches, for every format."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from PIL import Image
from pyarrow import parquet

from moekd.config import build, parse_yaml, validate_component
from moekd.data import DATASETS, make_loader, with_labels
from moekd.errors import DataError

ROWS = 30


def from_yaml(text: str):
    problems: list[str] = []
    spec = validate_component(DATASETS, parse_yaml(text, "test"), "data", problems)
    assert not problems, problems
    return build(spec, DATASETS)


@pytest.fixture
def folder(tmp_path):
    """Pictures, recordings, captions, vectors and labels of 30 samples."""
    for row in range(ROWS):
        (tmp_path / "media").mkdir(exist_ok=True)
        Image.new("RGB", (20, 10), (row * 8, 0, 255)).save(tmp_path / f"media/{row}.png")
        soundfile.write(tmp_path / f"media/{row}.wav", np.full(4000, row / 100), 8000)
    return tmp_path


def records():
    return [
        {
            "picture": f"media/{row}.png",
            "sound": f"media/{row}.wav",
            "caption": f"sample number {row}",
            "vector": [float(row), 1.0, -1.0],
            "kind": ["cat", "dog", "emu"][row % 3],
            "part": ["train", "train", "train", "validation", "test", "test_far"][row % 6],
        }
        for row in range(ROWS)
    ]


def write(folder, form):
    rows = records()
    if form == "csv":
        lines = [",".join(key for key in rows[0] if key != "vector")]
        lines += [",".join(str(value) for key, value in row.items() if key != "vector") for row in rows]
        (folder / "table.csv").write_text("\n".join(lines) + "\n")
    elif form == "json":
        (folder / "table.json").write_text("\n".join(json.dumps(row) for row in rows))
    elif form == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), folder / "table.parquet", row_group_size=4)
    else:
        with (
            pa.OSFile(str(folder / "table.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, pa.Table.from_pylist(rows).schema) as writer,
        ):
            writer.write_table(pa.Table.from_pylist(rows))
    return folder / f"table.{form}"


def multimodal(folder, form, extra="", vector=True):
    path = write(folder, form)
    return from_yaml(f"""
kind: files
path: {path}
label: kind
split: part
cache_dir: {folder / "cache"}
fields:
  image: {{kind: image, column: picture, size: 8, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}
  audio:
    {{kind: audio, column: sound, sample_rate: 8000, seconds: 0.4,
      log_mel: {{n_fft: 256, window: 200, hop: 80, mels: 16}}}}
  caption: {{kind: text, tokenizer: {{kind: bytes, context: 24}}}}
  {"vector: {kind: vector, size: 3}" if vector else ""}
{extra}
""")


FORMATS = [("csv", ""), ("json", ""), ("parquet", ""), ("arrow", ""), ("parquet", "streaming: true")]


@pytest.mark.parametrize(("form", "extra"), FORMATS)
def test_every_format_gives_the_same_batches(folder, form, extra):
    data = multimodal(folder, form, extra, vector=form != "csv")
    assert data.class_names == ["cat", "dog", "emu"]
    assert list(data.splits) == ["train", "val", "test", "test_far"]
    assert [len(split) for split in data.splits.values()] == [15, 5, 5, 5]
    for batch in make_loader(data.splits["train"], 4, shuffle=True):
        size = len(batch["id"])
        assert batch["image"].shape == (size, 3, 8, 8)
        assert batch["audio"].shape == (size, 1, 16, 41)
        assert batch["caption"].shape == batch["caption_mask"].shape == (size, 24)
        red = (batch["image"][:, 0, 4, 4] * 0.5 + 0.5) * 255
        assert torch.allclose(red, batch["id"] * 8.0, atol=0.5)
        assert batch["label"].tolist() == [i % 3 for i in batch["id"].tolist()]
        for row, sample in enumerate(batch["id"].tolist()):
            text = bytes(batch["caption"][row][batch["caption_mask"][row]].sub(1).tolist()).decode()
            assert text == f"sample number {sample}"
        if "vector" in batch:
            assert batch["vector"].tolist() == [[float(i), 1.0, -1.0] for i in batch["id"].tolist()]
    for name, spec in data.fields.items():
        assert tuple(batch[name].shape[1:]) == spec.shape
        assert str(batch[name].dtype) == f"torch.{spec.dtype}"
    assert data.fields["audio"].modality == "audio"


def test_few_labels_workers_and_ranks(folder):
    split = with_labels(multimodal(folder, "parquet", "streaming: true").splits["train"], 6)
    plain = [batch["id"].tolist() for batch in make_loader(split, 4, shuffle=True, seed=1)]
    worked = [batch["id"].tolist() for batch in make_loader(split, 4, shuffle=True, seed=1, num_workers=2, timeout=60)]
    assert plain == worked
    assert sorted(i for batch in plain for i in batch) == split.ids.tolist()
    assert sum(int(batch["labelled"].sum()) for batch in make_loader(split, 4, shuffle=True)) == 6


def test_streaming_stays_in_windows_of_row_groups(tmp_path):
    rows = [{"x": [float(i)], "label": i % 2} for i in range(4000)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=100)
    data = from_yaml(f"""
kind: files
path: {tmp_path}/t.parquet
streaming: true
split: {{val: 0.1, test: 0.2, seed: 3}}
fields: {{x: {{kind: vector}}}}
""")
    train = data.splits["train"]
    batches = [batch["id"].numpy() for batch in make_loader(train, 50, shuffle=True, seed=1)]
    order = np.concatenate(batches)
    assert sorted(order) == train.ids.tolist()
    assert max(len(np.unique(batch // 100)) for batch in batches) <= 8
    assert np.abs(np.diff(order)).mean() > 100
    again = [batch["id"].numpy() for batch in make_loader(train, 50, shuffle=True, seed=1, start_batch=5)]
    assert all((first == second).all() for first, second in zip(again, batches[5:], strict=True))
    assert len(train.source._recent) <= 5


def test_splits_by_fraction_are_stratified_and_seeded(folder):
    def splits(seed):
        path = write(folder, "json")
        return from_yaml(
            f"{{kind: files, path: {path}, label: kind, split: {{val: 0.1, test: 0.2, seed: {seed}}}, "
            f"cache_dir: {folder / 'cache'}, fields: {{vector: {{kind: vector}}}}}}"
        ).splits

    first = splits(0)
    assert [len(split) for split in first.values()] == [21, 3, 6]
    assert np.bincount(first["test"].labels).tolist() == [2, 2, 2]
    assert np.bincount(first["val"].labels).tolist() == [1, 1, 1]
    assert [s.ids.tolist() for s in splits(0).values()] == [s.ids.tolist() for s in first.values()]
    assert splits(1)["test"].ids.tolist() != first["test"].ids.tolist()


def test_splits_by_file_and_a_fraction_of_train(folder):
    rows = records()
    for name, part in (("a", rows[:20]), ("b", rows[20:])):
        parquet.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")
    data = from_yaml(f"""
{{kind: files, path: {folder}, label: kind, split: {{train: a.parquet, test: b.parquet, val: 0.2}},
cache_dir: {folder / "cache"}, fields: {{vector: {{kind: vector}}}}}}
""")
    assert [len(split) for split in data.splits.values()] == [16, 4, 10]
    assert data.splits["test"].ids.tolist() == list(range(20, 30))
    assert data.splits["test"][0]["vector"].tolist() == [20.0, 1.0, -1.0]


def test_image_folder_with_and_without_splits(tmp_path):
    for part in ("train", "validation", "test"):
        for label in ("cat", "dog"):
            for row in range(3):
                path = tmp_path / f"split/{part}/{label}/{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (9, 9), row).save(path)
    text = "{{kind: files, path: {path}, {split} fields: {{image: {{kind: image, size: 4, color: grey}}}}}}"
    data = from_yaml(text.format(path=tmp_path / "split", split=""))
    assert data.class_names == ["cat", "dog"]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert len(np.unique(np.concatenate([split.ids for split in data.splits.values()]))) == 18
    assert data.splits["val"].describe(int(data.splits["val"].ids[0])).endswith("cat/0.png")
    drawn = text.format(path=tmp_path / "split/train", split="split: {val: 0.34, test: 0.34},")
    flat = from_yaml(drawn)
    assert [len(split) for split in flat.splits.values()] == [2, 2, 2]
    before = flat.fingerprint()
    Image.new("L", (90, 9), 0).save(tmp_path / "split/train/cat/0.png")
    assert from_yaml(drawn).fingerprint() != before


def test_audio_folder(tmp_path):
    for label in ("no", "yes"):
        for row in range(5):
            (tmp_path / label).mkdir(exist_ok=True)
            soundfile.write(tmp_path / f"{label}/{row}.flac", np.zeros(800), 8000)
    data = from_yaml(
        f"{{kind: files, path: {tmp_path}, split: {{val: 0.2, test: 0.2}}, "
        "fields: {audio: {kind: audio, seconds: 0.1, sample_rate: 8000}}}"
    )
    assert data.splits["train"][0]["audio"].shape == (1, 800)


def test_hugging_face_media_columns_and_saved_sets(tmp_path):
    for row in range(6):
        Image.new("RGB", (5, 5), (row, row, row)).save(tmp_path / f"{row}.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict(
        {"image": [str(tmp_path / f"{row}.png") for row in range(6)], "label": [row % 2 for row in range(6)]}, features
    )
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "embedded.parquet")
    for path in ("saved", "embedded.parquet"):
        data = from_yaml(
            f"{{kind: files, path: {tmp_path / path}, cache_dir: {tmp_path / 'cache'}, "
            "split: {val: 0.34, test: 0.34}, fields: {image: {kind: image, size: 5}}}"
        )
        assert data.class_names == ["a", "b"]
        sample = data.splits["train"][0]
        assert torch.allclose(sample["image"] * 255, torch.full((3, 5, 5), float(sample["id"])))


def test_integer_labels_of_a_csv_with_empty_cells(tmp_path):
    lines = [
        f"{row},{'' if row == 1 else row % 2},{'train' if row < 6 else 'val' if row < 8 else 'test'}"
        for row in range(10)
    ]
    (tmp_path / "t.csv").write_text("x,label,part\n" + "\n".join(lines))
    data = from_yaml(
        f"{{kind: files, path: {tmp_path / 't.csv'}, split: part, cache_dir: {tmp_path / 'cache'}, "
        "fields: {x: {kind: vector}}}"
    )
    assert data.class_names == ["0", "1"]
    assert data.splits["train"].labels.tolist() == [0, -1, 0, 1, 0, 1]


def test_empty_labels_in_train_are_unlabelled_rows(tmp_path):
    rows = [{"x": [1.0], "label": None if row < 4 else "ab"[row % 2]} for row in range(12)]
    parquet.write_table(pa.Table.from_pylist(rows[:8]), tmp_path / "train.parquet")
    parquet.write_table(pa.Table.from_pylist(rows[8:10]), tmp_path / "val.parquet")
    parquet.write_table(pa.Table.from_pylist(rows[10:]), tmp_path / "test.parquet")
    text = f"""
{{kind: files, path: {tmp_path}, cache_dir: {tmp_path / "cache"}, fields: {{x: {{kind: vector}}}},
split: {{train: train.parquet, val: val.parquet, test: test.parquet}}}}
"""
    train = from_yaml(text).splits["train"]
    batch = train.__getitems__(list(range(8)))
    assert batch["labelled"].tolist() == [False] * 4 + [True] * 4
    assert batch["label"].tolist() == [-1] * 4 + [0, 1, 0, 1]
    few = with_labels(train, 2).__getitems__(list(range(8)))
    assert int(few["labelled"].sum()) == 2
    assert not few["labelled"][:4].any()
    with pytest.raises(DataError, match="labels: 5"):
        with_labels(train, 5)
