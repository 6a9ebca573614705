"""Manifests: distinct errors, forged ones, malformed tensors behind a right checksum."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from moekd import manifest
from moekd.checkpoint import load_checkpoint, save_checkpoint
from moekd.errors import CheckpointError


def save(folder: Path) -> Path:
    return save_checkpoint(folder, "step-1", {"student": {"w": torch.ones(3)}, "progress": {"step": 1}}, {"step": 1})


def rewrite(path: Path, **changes) -> None:
    """Forge a manifest whose own checksum is right."""
    file = path / "manifest.json"
    file.write_bytes(manifest._canonical({**json.loads(file.read_text()), **changes}))


def test_manifest_errors_are_distinct(tmp_path):
    """C2: empty, no JSON, another format, another version, changed, missing."""
    path = save(tmp_path)
    file = path / "manifest.json"
    for content, message in (
        (b"", r"is empty \(0 bytes\)"),
        (b"\0" * 512, r"is empty \(512 bytes\)"),
        (b'{"format": ', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "does not describe a moekd-checkpoint"),
        (b'{"format": "other"}', "does not describe a moekd-checkpoint"),
        (b'{"format": "moekd-checkpoint", "version": 99}', "unknown format version 99"),
        (b'{"format": "moekd-checkpoint", "version": 1}', "sha256 mismatch"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing: this is no complete checkpoint"):
        load_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "sub/a.json", "..", "a\0.json", "..\\x.json"])
def test_forged_file_names_never_leave_the_folder(tmp_path, name):
    path = save(tmp_path)
    (tmp_path / "outside.json").write_text("secret")
    files = json.loads((path / "manifest.json").read_text())["files"]
    rewrite(path, files={**files, name: {"bytes": 6, "sha256": "0"}})
    with pytest.raises(CheckpointError, match="leaves the folder"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": ["../other"]}, "belongs to no part|lists no file"),
        ({"entries": ["student", "progress", "more"]}, r"lists no file 'more\.safetensors'"),
        ({"entries": "student"}, "wrong type"),
        ({"files": []}, "wrong type"),
        ({"files": {"student.json": 3}}, "wrong type"),
        ({"sequence": "new"}, "wrong type"),
        ({"meta": [1]}, "wrong type"),
        ({"meta": {"x": {"$tensor": "t"}}}, "needs the tensor"),
    ],
)
def test_forged_manifests_fail_cleanly(tmp_path, changes, message):
    path = save(tmp_path)
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def header(content: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header({"t": F32}, b"1234", length=2**63),
        header({"t": F32}, b"1234", length=2**40),
        header({"t": F32, "u": F32}, b"1234"),
        header({"t": F32, "u": {**F32, "data_offsets": [8, 12]}}, b"123456789012"),
        header({"t": {**F32, "dtype": "F99"}}, b"1234"),
        header({"t": {**F32, "shape": [2**62, 8]}}, b"1234"),
        header({"t": {**F32, "data_offsets": [0, 2**60]}}, b"1234"),
        header(b"[" * 200_000),
        header(b"\xff\xff"),
        header({"t": F32}, b""),
    ],
    ids=["empty", "2^63", "2^40", "overlap", "hole", "dtype", "shape", "offsets", "bomb", "utf8", "short"],
)
def test_malformed_safetensors_with_a_right_checksum_are_refused(tmp_path, content):
    path = save(tmp_path)
    file = path / "student.safetensors"
    file.write_bytes(content)
    files = json.loads((path / "manifest.json").read_text())["files"]
    files[file.name] = {"bytes": len(content), "sha256": manifest.sha256_of(file)}
    rewrite(path, files=files)
    with pytest.raises(CheckpointError, match=r"student\.safetensors is no readable safetensors file"):
        load_checkpoint(path)
