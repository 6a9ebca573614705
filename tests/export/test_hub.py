"""Uploads to the Hub, against a server on this machine that speaks its calls; the client is the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pytest_socket import disable_socket, enable_socket, socket_allow_hosts

from moekd.errors import ConfigError, DataError, ModelError, UnknownNameError
from moekd.export import load_student, push

from .fake_hub import FakeHub

TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub():
    enable_socket()
    socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)
    server = FakeHub()
    yield server
    server.close()
    disable_socket(allow_unix_socket=True)


def moekd(hub: FakeHub, *arguments: object, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": os.devnull + "/none"}
    if token is not None:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-m", "moekd", "export", *map(str, arguments), "--format", "hub"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_a_student_goes_up_whole(hub, clip_run, tmp_path):
    said = moekd(hub, clip_run, "--repo", "me/small-clip", "--formats", "open_clip,safetensors", "--private")
    assert said.returncode == 0, said.stderr
    assert f"uploaded: {hub.url}/me/small-clip/commit/" in said.stdout
    assert hub.private == {"me/small-clip"}
    assert hub.commits == ["Upload the student"]
    files = hub.repos["me/small-clip"]
    assert {"README.md", "open_clip_config.json", "open_clip_model.safetensors"} <= set(files)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    load_student(tmp_path / "safetensors")
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "open_clip"
    assert '"hf-hub:me/small-clip"' in card
    assert "FOLDER" not in card
    assert "- `safetensors/`: see [its page](safetensors/README.md)" in card
    assert any(call[2] == f"Bearer {TOKEN}" for call in hub.calls)
    assert TOKEN not in said.stdout + said.stderr
    assert not any(TOKEN.encode() in content for content in files.values())

    again = moekd(hub, clip_run, "--repo", "me/small-clip")
    assert again.returncode == 1
    assert "me/small-clip exists already on the Hub; --update adds a commit to it" in again.stderr
    assert len(hub.commits) == 1
    assert "Traceback" not in again.stderr


def test_update_adds_a_commit_to_what_is_there(hub, timm_run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repos["me/small"] = {"notes.txt": b"kept"}
    upload = push(timm_run, "me/small", endpoint=hub.url, update=True)
    assert upload.url == f"{hub.url}/me/small/commit/{'0' * 40}"
    assert hub.repos["me/small"]["notes.txt"] == b"kept"
    assert set(hub.repos["me/small"]) == {"notes.txt", *upload.files}
    for path, size in upload.files.items():
        assert len(hub.repos["me/small"][path]) == size


@pytest.mark.parametrize(("status", "words"), [(403, "log in as somebody who may"), (500, "the upload to me/x failed")])
def test_refusals_of_the_server_are_told(hub, timm_run, monkeypatch, status, words):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refuse = status
    with pytest.raises(DataError, match=words) as caught:
        push(timm_run, "me/x", endpoint=hub.url)
    assert TOKEN not in str(caught.value)
    assert hub.repos == {}


def test_a_server_that_is_not_there(timm_run, monkeypatch, hub):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(DataError, match="the upload to me/x failed"):
        push(timm_run, "me/x", endpoint="http://127.0.0.1:9")
    assert hub.calls == []


def test_a_dry_run_sends_nothing(hub, timm_run):
    said = moekd(hub, timm_run, "--repo", "me/x", "--dry-run", token=None)
    assert said.returncode == 0, said.stderr
    assert "would upload to me/x" in said.stdout
    assert "model.safetensors" in said.stdout
    assert hub.calls == []


def test_mistakes_are_told_before_anything_is_written(timm_run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for repo, words in (("name", "expected owner/name"), ("a/b/c", "repo: "), ("me/..", "repo: "), ("", "repo: ")):
        with pytest.raises(ConfigError, match=words):
            push(timm_run, repo, dry_run=True)
    with pytest.raises(UnknownNameError, match="did you mean 'onnx'"):
        push(timm_run, "me/x", ["onx"], dry_run=True)
    with pytest.raises(ConfigError, match="expected different formats"):
        push(timm_run, "me/x", ["onnx", "onnx"], dry_run=True)
    with pytest.raises(ModelError, match="format open_clip can't express"):
        push(timm_run, "me/x", ["open_clip"], dry_run=True)
    assert not (Path(timm_run) / "export" / "hub").exists()


def test_without_a_login(timm_run, monkeypatch):
    monkeypatch.setattr("moekd.export.hub.get_token", lambda: None)
    with pytest.raises(DataError, match="run `hf auth login`"):
        push(timm_run, "me/x")
