"""S3, S4, C2: whatever the bytes of a checkpoint, a table of signals, a student or a file of vectors are, the answer is
an error of moekd or a valid object; never another exception, never execution. Configs: tests/config/test_fuzz.py.

Half of the inputs are re-signed, so that the readers see nonsense whose checksums are right.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from moekd.cache.table import Table, read_shard
from moekd.checkpoint import find_latest, load_checkpoint, read_tensors, save_checkpoint
from moekd.errors import MoekdError
from moekd.export.student import digest_of, load_student
from moekd.inference.label_vectors import read_label_vectors
from moekd.manifest import _canonical
from moekd.model import Model
from moekd.networks import Mlp
from moekd.teachers.manifest import differences
from moekd.tracking import read_jsonl

from .cache.builders import pass_of, through

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EVIL = "__import__('os').system('touch canary')"
WORDS = st.sampled_from(["", "..", "/etc/passwd", "os.system", EVIL, "F32", "float32", "$tensor", "$tuple", "a\0b"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that is read makes a file called canary."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("canary"))


def outcome(call: Callable[[], Any]) -> Any:
    """Return the result, or None after an error of moekd."""
    try:
        return call()
    except MoekdError:
        return None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside of nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(data: st.DataObject, document: Any) -> Any:
    """Return a JSON document with a value replaced, removed or added."""
    document = json.loads(json.dumps(document))
    *parents, last = data.draw(st.sampled_from(list(places(document))))
    parent = document
    for step in parents:
        parent = parent[step]
    if data.draw(st.booleans()) and isinstance(parent, dict):
        del parent[last]
    else:
        parent[last] = data.draw(VALUES)
    return document


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Return bytes with some of them changed, cut off or added."""
    raw = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    return bytes(raw[: data.draw(st.integers(0, len(raw)))]) + data.draw(st.binary(max_size=8))


STATE = {
    "student": {"weight": torch.arange(6.0), "step": 3, "names": ("a", 2**60)},
    "random": {"numbers": torch.arange(4, dtype=torch.uint8)},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("fuzz"), "one", STATE, {"step": 3, "config": {"seed": 1}})


@QUICK
@given(data=st.data())
def test_checkpoints(checkpoint: Path, tmp_path: Path, data: st.DataObject) -> None:
    """C1, C2: any file of a checkpoint, damaged or replaced by nonsense, with the right checksums or without."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    place = Path(shutil.copytree(checkpoint, tmp_path / "run" / "one"))
    name = data.draw(st.sampled_from(sorted(file.name for file in place.iterdir())))
    file = place / name
    if data.draw(st.booleans()):
        file.write_bytes(damaged(data, file.read_bytes()))
    elif file.suffix == ".json":
        document = changed(data, json.loads(file.read_bytes()))
        sign = name == "manifest.json" and isinstance(document, dict)
        file.write_bytes(_canonical(document) if sign else json.dumps(document).encode())
    if name != "manifest.json" and data.draw(st.booleans()):
        manifest = json.loads((place / "manifest.json").read_bytes())
        content = file.read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (place / "manifest.json").write_bytes(_canonical(manifest))
    found = outcome(lambda: load_checkpoint(place))
    assert found is None or set(found[0]) <= set(STATE)
    newest, skipped = find_latest(tmp_path / "run")
    assert (newest is None) == bool(skipped)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    through(folder, pass_of())
    return next(path.parent for path in folder.rglob("manifest.json"))


def use(table: Table) -> None:
    """Do with a table what the store does."""
    assert table.missing is not None
    assert table.nbytes >= 0
    assert table.like
    assert table.differences(table.identity) == {}
    for index in range(min(table.shards, 3)):
        if index not in table.missing and table.damage(index) is None:
            for mapped in (False, True):
                table.read(index, mapped)


@QUICK
@given(data=st.data())
def test_tables_of_signals(table: Path, tmp_path: Path, data: st.DataObject) -> None:
    """K3: the manifest or a shard of stored signals is damaged, or nonsense with the right checksums."""
    shutil.rmtree(tmp_path / "table", ignore_errors=True)
    place = Path(shutil.copytree(table, tmp_path / "table"))
    shard = next(file for file in sorted(place.iterdir()) if file.suffix == ".safetensors")
    manifest = json.loads((place / "manifest.json").read_bytes())
    manifest.pop("sha256")
    action = data.draw(st.sampled_from(["manifest", "bytes", "shard", "signed shard"]))
    if action == "bytes":
        (place / "manifest.json").write_bytes(damaged(data, (place / "manifest.json").read_bytes()))
    elif action == "manifest":
        manifest = changed(data, manifest)
    else:
        shard.write_bytes(damaged(data, shard.read_bytes()))
    if action == "signed shard":
        content = shard.read_bytes()
        manifest["shards"][shard.name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if action != "bytes":
        digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        (place / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest}))
    outcome(lambda: use(Table.open(place)))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from moekd.export.student import export_student

    with torch.random.fork_rng():
        model = Model(Mlp(3, 8, [4]), ["left"])
    config = {
        "network": {"kind": "mlp", "options": {"in_features": 8, "hidden": [4]}},
        "class_names": ["a", "b", "c"],
        "fields": {"left": {"shape": [8], "dtype": "float32", "modality": "vector"}},
    }
    return export_student(model, config, tmp_path_factory.mktemp("fuzz") / "student", program=False)


@QUICK
@given(data=st.data())
def test_students(student: Path, tmp_path: Path, data: st.DataObject) -> None:
    """S3, S6: description and weights of a student, damaged or nonsense."""
    shutil.rmtree(tmp_path / "student", ignore_errors=True)
    place = Path(shutil.copytree(student, tmp_path / "student"))
    document = json.loads((place / "config.json").read_bytes())
    if data.draw(st.booleans()):
        document = changed(data, document)
        if isinstance(document, dict) and data.draw(st.booleans()):
            document.pop("sha256", None)
            document["sha256"] = digest_of(document)
        (place / "config.json").write_text(json.dumps(document))
    else:
        name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
        (place / name).write_bytes(damaged(data, (place / name).read_bytes()))
    found = outcome(lambda: load_student(place))
    assert found is None or isinstance(found, nn.Module)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_safetensors(tmp_path: Path, data: st.DataObject) -> None:
    """S4: headers that lie about shapes, types and places, in all readers of safetensors files."""
    content = save({"text": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int64)}, {"text": '["a", "b"]'})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if data.draw(st.booleans()):
        content = damaged(data, content)
    else:
        text = json.dumps(changed(data, header)).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + length :]
    file = tmp_path / "fuzz.safetensors"
    file.write_bytes(content)
    for read in (read_tensors, read_label_vectors):
        outcome(lambda read=read: read(file))
    for mapped in (False, True):
        outcome(lambda mapped=mapped: read_shard(file, mapped))


@QUICK
@given(content=st.binary(max_size=60) | st.text(st.sampled_from('{}[]":,\n1e9aN'), max_size=40).map(str.encode))
def test_records(tmp_path: Path, content: bytes) -> None:
    """The records of a run."""
    (tmp_path / "metrics.jsonl").write_bytes(content)
    found = outcome(lambda: read_jsonl(tmp_path / "metrics.jsonl"))
    assert found is None or all(isinstance(record, dict) for record in found)


@QUICK
@given(before=st.lists(st.dictionaries(WORDS, VALUES, max_size=3), max_size=2))
def test_manifests_of_teachers(before: list[dict[str, Any]]) -> None:
    """K1: a manifest of teachers from another place is compared, whatever it holds."""
    rows = [{"name": "a", "kind": "mlp", "weights": None}]
    assert all(isinstance(line, str) for line in differences(before, rows))


def test_deep_nesting(tmp_path: Path) -> None:
    """S4: JSON that is nested a hundred thousand times is refused by every reader."""
    deep = b"[" * 100_000
    (tmp_path / "manifest.json").write_bytes(deep)
    (tmp_path / "config.json").write_bytes(deep)
    (tmp_path / "metrics.jsonl").write_bytes(deep + b"\n")
    (tmp_path / "x.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    calls = [
        lambda: load_checkpoint(tmp_path),
        lambda: Table.open(tmp_path),
        lambda: load_student(tmp_path),
        lambda: read_jsonl(tmp_path / "metrics.jsonl"),
        lambda: read_tensors(tmp_path / "x.safetensors"),
    ]
    for call in calls:
        with pytest.raises(MoekdError):
            call()
