"""S4 to S9: files, names, networks, logs and pages that come from strangers."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_socket import SocketBlockedError
from safetensors.torch import save

from moekd.atomic import safe_name
from moekd.cache.table import Identity, Table, read_shard
from moekd.checkpoint import read_tensors, save_checkpoint
from moekd.config import load_config, parse_recipe
from moekd.errors import CheckpointError, ConfigError, MoekdError
from moekd.export import export_student, load_student
from moekd.inference.label_vectors import read_label_vectors
from moekd.networks import NETWORKS
from moekd.networks.adapter import check_revision
from moekd.tracking import RunFolder

from .engine.conftest import _tiny_kinds  # noqa: F401
from .engine.tiny import recipe_of, simple, train

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hf_a_token_that_nobody_may_see"


def file_of(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(start: int, stop: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


MALFORMED = {
    "empty": b"",
    "a header of 2**63 bytes": file_of(b"{}", length=2**63),
    "a header of 2**64 - 1 bytes": file_of(b"{}", length=2**64 - 1),
    "a header longer than the file": file_of(b"{}", length=1000),
    "no JSON": file_of(b"nonsense"),
    "no UTF-8": file_of(b'{"\xff": 1}'),
    "a list": file_of([1]),
    "overlapping places": file_of({"ids": entry(0, 4), "rows.b": entry(2, 6)}, bytes(6)),
    "a hole": file_of({"ids": entry(0, 4), "rows.b": entry(8, 12)}, bytes(12)),
    "behind the end": file_of({"ids": entry(0, 4000, shape=(1000,))}, bytes(4)),
    "before the start": file_of({"ids": entry(-8, -4)}, bytes(4)),
    "another type": file_of({"ids": entry(0, 4, "PICKLE")}, bytes(4)),
    "another size": file_of({"ids": entry(0, 4, shape=(3, 5))}, bytes(4)),
    "too large a shape": file_of({"ids": entry(0, 4, shape=(2**40, 2**40))}, bytes(4)),
    "deep JSON": file_of(b"[" * 200_000),
    "a JSON bomb": file_of(b'{"__metadata__":{' + b",".join(b'"%d":"x"' % i for i in range(200_000)) + b"}"),
    "cut off": save({"ids": torch.arange(100)})[:-1],
}
READERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": read_tensors,
    "signals": lambda file: read_shard(file, mapped=False),
    "mapped signals": lambda file: read_shard(file, mapped=True),
    "label vectors": read_label_vectors,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_safetensors(tmp_path: Path, name: str, reader: str) -> None:
    """S4: every malformed header is an error of moekd, and costs no memory to speak of."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(MALFORMED[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MoekdError, match=r"x\.safetensors"):
        READERS[reader](file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "KiB"


NAMES = ["../x", "..", "/etc/passwd", "a/b", "a\\b", "a\0b", "C:x", "nul", "COM1.txt", "x" * 300, "a\n", ".x", "x ", ""]


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    """S6: names of runs, checkpoints, parts and stages can't leave their folder."""
    with pytest.raises(ConfigError):
        safe_name(name)
    with pytest.raises(ConfigError):
        RunFolder(tmp_path / "runs", name)
    for arguments in ((name, {"a": {"b": 1}}), ("a", {name: {"b": 1}})):
        with pytest.raises(CheckpointError):
            save_checkpoint(tmp_path / "runs", *arguments, {})
    for raw in (simple({"name": name}), simple(teachers={name: simple()["student"]})) if name != "nul" else ():
        with pytest.raises(ConfigError):
            parse_recipe(raw, "x")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", NAMES)
def test_signals_have_names_of_their_own_making(name: str) -> None:
    """S6: whatever a signal, split or teacher is called, the folder of its table is a plain name."""
    folder = Identity(name, name, name, name, name, name, name, name).folder
    assert safe_name(folder) == folder
    assert Path(folder).name == folder


def test_files_of_a_table_are_shards(tmp_path: Path) -> None:
    """S6: a manifest of stored signals can't name files elsewhere."""
    from .cache.builders import pass_of, tables, through

    through(tmp_path, pass_of())
    table = Table.open(tables(tmp_path)[0])
    table.manifest["shards"]["../../shard-00000.safetensors"] = {"bytes": 1, "sha256": "0"}
    table.write_manifest()
    with pytest.raises(MoekdError, match="lists files that are no shards"):
        Table.open(table.folder)


@pytest.mark.parametrize("option", ["trust_remote_code", "allow_pickle", "weights_only"])
@pytest.mark.parametrize("kind", ["transformers", "open_clip", "timm", "mlp"])
def test_no_config_allows_code(kind: str, option: str) -> None:
    """S7: running code of others is no option of any network, whatever a config says."""
    assert kind in NETWORKS.names()
    with pytest.raises(ConfigError, match=f"student.{option}: unknown"):
        parse_recipe(simple(student={"kind": kind, "inputs": ["left"], option: True}), "x")


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc", "a" * 39, "A" * 40, "../" + "a" * 37])
def test_hub_names_need_a_commit(revision: str | None) -> None:
    """S7: a model of the Hugging Face Hub is named with the commit that is trusted; the commit is recorded."""
    with pytest.raises(ConfigError, match="name the commit"):
        check_revision("someone/model", revision)
    assert check_revision("someone/model", "0123456789abcdef" * 2 + "01234567") == "0123456789abcdef" * 2 + "01234567"


def test_a_downloaded_student_asks_for_nothing(tmp_path: Path) -> None:
    """S7, S8: the description of a student can't have weights fetched, nor kinds made that are not registered."""
    program = recipe_of(simple()).build()
    config = {
        "network": {"kind": "mlp", "options": {"in_features": 8, "hidden": [12]}},
        "class_names": [f"cloud {i}" for i in range(4)],
        "fields": {"left": {"shape": [8], "dtype": "float32", "modality": "vector"}},
    }
    folder = export_student(program.phases[0].student, config, tmp_path / "student", program=False)
    document = json.loads((folder / "config.json").read_text())
    document.pop("sha256", None)
    for change in ({"trust_remote_code": True}, {"auto_map": {"AutoModel": "evil.Model"}}):
        changed = document | {"network": document["network"] | {"options": document["network"]["options"] | change}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(MoekdError, match="unknown"):
            load_student(folder)
    context = document["network"].get("context", {}) | {"loading": "weights"}
    (folder / "config.json").write_text(json.dumps(document | {"network": document["network"] | {"context": context}}))
    assert load_student(folder) is not None


def test_sockets_are_blocked() -> None:
    """S8: no test talks to the network."""
    import urllib.request

    with pytest.raises(Exception) as caught:
        urllib.request.urlopen("http://example.org", timeout=1)
    assert isinstance(caught.value, SocketBlockedError) or "A test tried to use socket" in str(caught.value)


TRAIN_OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("a socket was opened")
socket.socket.connect = socket.getaddrinfo = refuse
from tests.engine.tiny import register, simple, train
from pathlib import Path
register()
train(simple({"objectives": ["cross_entropy", "kd"]}, teachers={"a": simple()["student"]}), Path(sys.argv[1]))
print("trained")
"""


def test_training_opens_no_socket(tmp_path: Path) -> None:
    """S8: a run without a hub or tracker option looks up no name and connects to nothing."""
    command = [sys.executable, "-c", TRAIN_OFFLINE, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.stdout.strip().endswith("trained"), ended.stderr


def test_no_secret_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """S9: no file of a run and no line of its log holds a variable of the environment."""
    for variable in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MY_SETTING"):
        monkeypatch.setenv(variable, SECRET)
    with caplog.at_level(logging.DEBUG):
        raw = simple()
        raw["trainer"]["trackers"] = ["tensorboard"]
        train(raw, tmp_path)
    assert SECRET not in caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_configs_do_not_read_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S9, S1: `$HF_TOKEN` in a config stays what it is."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "a.yaml").write_text("title: $HF_TOKEN ${HF_TOKEN} %HF_TOKEN% ${oc.env:HF_TOKEN}\n")
    raw, _ = load_config(str(tmp_path / "a.yaml"))
    assert raw["title"] == "$HF_TOKEN ${HF_TOKEN} %HF_TOKEN% ${oc.env:HF_TOKEN}"
