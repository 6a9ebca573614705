"""`hub`: data sets in the layout of the Hugging Face Hub, from a folder; and what is said without a connection."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
from pyarrow import parquet

from moekd.data import make_loader
from moekd.data.fields.image import ImageField
from moekd.data.fields.text import TextField
from moekd.data.hub import Hub
from moekd.data.tokenizers import BytesTokenizer
from moekd.errors import DataError
from tests.data.tar_files import png

COMMIT = "0123456789abcdef" * 2 + "01234567"
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["cat", "dog", "emu"]),
    }
)


def part(numbers):
    rows = {
        "image": [{"bytes": png(n), "path": None} for n in numbers],
        "text": [f"picture {n}" for n in numbers],
        "label": [n % 3 for n in numbers],
    }
    return datasets.Dataset.from_dict(rows, features=FEATURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("birds")
    for name, count, start in (("train", 3, 0), ("validation", 1, 100), ("test", 1, 200), ("extra", 1, 150)):
        for shard in range(count):
            numbers = range(start + 8 * shard, start + 8 * shard + 8)
            target = path / "data" / f"{name}-{shard:05d}-of-{count:05d}.parquet"
            target.parent.mkdir(exist_ok=True)
            part(numbers).to_parquet(target, batch_size=4)
    return path


def fields():
    return {"image": ImageField(8), "text": TextField(tokenizer=BytesTokenizer(16, lower=False))}


def open_set(folder, tmp_path, **options):
    return Hub(str(folder), **({"fields": fields(), "label": "label", "cache_dir": str(tmp_path)} | options))


def numbers(batch):
    return (batch["image"][:, 0, 0, 0] * 255).round().long().tolist()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_in_the_layout_of_the_hub(folder, tmp_path, streaming):
    data = open_set(folder, tmp_path, streaming=streaming)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "val": 8, "test": 8}
    assert data.class_names == ["cat", "dog", "emu"]
    seen = []
    for batch in make_loader(data.splits["train"], 5, shuffle=True):
        seen += numbers(batch)
        assert batch["label"].tolist() == [n % 3 for n in numbers(batch)]
        assert batch["id"].tolist() == numbers(batch)
    assert sorted(seen) == list(range(24))
    assert seen != sorted(seen)
    assert (data.splits["train"].blocks is None) != streaming
    assert data.splits["train"].describe(20).endswith("split 'train' row 20" if not streaming else "3.parquet row 4")
    said = data.splits["test"].describe(int(data.splits["test"].ids[3]))
    assert said.endswith("test-00000-of-00001.parquet row 3" if streaming else "split 'test' row 3")


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_are_chosen_by_name_and_fraction(folder, tmp_path, streaming):
    split = {"train": "train", "val": 0.25, "test": "validation", "test_far": "extra"}
    data = open_set(folder, tmp_path, streaming=streaming, split=split, label=None)
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 18, "val": 6, "test": 8, "test_far": 8}
    assert numbers(data.splits["test_far"].__getitems__([0])) == [150]
    assert data.num_classes == 0
    assert data.splits["train"].labels is None


def test_the_fingerprint_follows_content(folder, tmp_path):
    first = open_set(folder, tmp_path, streaming=True).fingerprint()
    assert open_set(folder, tmp_path, streaming=True).fingerprint() == first
    copy = tmp_path / "copy" / "data"
    copy.mkdir(parents=True)
    for path in (folder / "data").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert open_set(copy.parent, tmp_path, streaming=True).fingerprint() == first
    part(range(50, 58)).to_parquet(copy / "test-00000-of-00001.parquet")
    assert open_set(copy.parent, tmp_path, streaming=True).fingerprint() != first


def test_mistakes_say_what_to_do(folder, tmp_path):
    with pytest.raises(DataError, match=r"split.val: .* has no split 'validatoin'; did you mean 'validation'"):
        open_set(folder, tmp_path, split={"train": "train", "val": "validatoin", "test": "test"})
    with pytest.raises(DataError, match=r"no column 'txet' \(field 'text'\); did you mean 'text'"):
        open_set(folder, tmp_path, fields={"text": TextField(column="txet")})
    with pytest.raises(DataError, match="'nothing' not found"):
        open_set(folder, tmp_path, config="nothing")
    with pytest.raises(DataError, match="none for train"):
        open_set(folder, tmp_path, split={"val": "validation"})


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:8]])
def test_a_name_on_the_hub_needs_a_commit(tmp_path, revision):
    """S7: branches and tags can move."""
    with pytest.raises(DataError, match=r"name the commit \(40 hex digits"):
        open_set("me/birds", tmp_path, revision=revision)


@pytest.mark.parametrize("streaming", [False, True])
def test_without_a_connection_a_folder_is_asked_for(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'me/birds at 01234567' can't be had.*Download the repository"):
        open_set("me/birds", tmp_path, revision=COMMIT, streaming=streaming)


def test_streaming_reads_parquet_with_the_same_columns_only(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("train", "test", "validation"):
        (folder / f"{name}.csv").write_text("text,label\na,0\nb,1\n")
    with pytest.raises(DataError, match=r"streaming reads parquet only, found .*\.csv"):
        open_set(folder, tmp_path, streaming=True)
    odd = tmp_path / "odd"
    odd.mkdir()
    parquet.write_table(pa.table({"text": ["a"]}), odd / "train-00000-of-00002.parquet")
    parquet.write_table(pa.table({"caption": ["a"]}), odd / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match=r"columns are not those of .*: caption; expected text"):
        open_set(odd, tmp_path, streaming=True, fields={"text": TextField()}, label=None)
    (odd / "train-00001-of-00002.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="can't be read as parquet"):
        open_set(odd, tmp_path, streaming=True, fields={"text": TextField()}, label=None)


def test_download_through_the_client_of_the_hub(folder, tmp_path):
    """Against a server on this machine, in a process of its own, since the client reads its address when imported."""
    script = Path(__file__).with_name("hub_server.py")
    command = [sys.executable, str(script), str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for said in found.values():
        assert said["rows"] == {"train": 24, "val": 8, "test": 8}
        assert said["classes"] == ["cat", "dog", "emu"]
        assert said["red"] == [0.0, 11.0, 23.0]
        assert said["label"] == [0, 2, 2]
    assert found["streamed0"]["described"].endswith(f"me/birds@{COMMIT}/data/train-00002-of-00003.parquet row 4")
    assert [found[name]["fetched"] for name in ("streamed0", "streamed1")] == [5, 0], "each file once"
    assert found["streamed0"]["fingerprint"] == found["streamed1"]["fingerprint"]
