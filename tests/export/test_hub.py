"""Uploads to the Hub, against a server on this machine that speaks its calls; the client is the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from pytest_socket import disable_socket, enable_socket, socket_allow_hosts
from typer.testing import CliRunner

from moekd.cli.main import app
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


@pytest.fixture
def login(monkeypatch):
    """A token, and uploads by the calls of Git LFS; the storage behind the newer ones is not on this machine."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def test_a_student_goes_up_whole(hub, login, clip_run, tmp_path, capsys, caplog):
    upload = push(clip_run, "me/small-clip", ["open_clip", "safetensors"], private=True, endpoint=hub.url)
    assert upload.url == f"{hub.url}/me/small-clip/commit/{'0' * 40}"
    assert hub.private == {"me/small-clip"}
    assert hub.commits == ["Upload the student"]
    files = hub.repos["me/small-clip"]
    assert set(files) == set(upload.files)
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
    told = capsys.readouterr()
    assert TOKEN not in told.out + told.err + caplog.text
    assert not any(TOKEN.encode() in content for content in files.values())


def test_the_command(hub, timm_run):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "moekd", "export", str(timm_run), "--format", "hub", "--repo", "me/small"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert said.returncode == 0, said.stderr
    assert f"uploaded: {hub.url}/me/small/commit/" in said.stdout
    assert TOKEN not in said.stdout + said.stderr
    assert "model.safetensors" in hub.repos["me/small"]


def test_a_repository_that_exists_stays(hub, login, timm_run):
    hub.repos["me/small"] = {"notes.txt": b"kept"}
    with pytest.raises(DataError, match="me/small exists already on the Hub; --update adds a commit to it"):
        push(timm_run, "me/small", endpoint=hub.url)
    assert hub.commits == []
    assert hub.repos["me/small"] == {"notes.txt": b"kept"}


def test_update_adds_a_commit_to_what_is_there(hub, login, timm_run):
    hub.repos["me/small"] = {"notes.txt": b"kept"}
    upload = push(timm_run, "me/small", endpoint=hub.url, update=True)
    assert upload.url == f"{hub.url}/me/small/commit/{'0' * 40}"
    assert hub.repos["me/small"]["notes.txt"] == b"kept"
    assert set(hub.repos["me/small"]) == {"notes.txt", *upload.files}
    for path, size in upload.files.items():
        assert len(hub.repos["me/small"][path]) == size


@pytest.mark.parametrize(("status", "words"), [(403, "log in as somebody who may"), (400, "the upload to me/x failed")])
def test_refusals_of_the_server_are_told(hub, login, timm_run, status, words):
    hub.refuse = status
    with pytest.raises(DataError, match=words) as caught:
        push(timm_run, "me/x", endpoint=hub.url)
    assert TOKEN not in str(caught.value)
    assert hub.repos == {}


def test_a_server_that_is_not_there(hub, login, timm_run):
    with pytest.raises(DataError, match="the upload to me/x failed"):
        push(timm_run, "me/x", endpoint="http://127.0.0.1:9")
    assert hub.calls == []


def test_a_dry_run_sends_nothing(hub, timm_run, monkeypatch):
    monkeypatch.setattr("moekd.export.hub.get_token", lambda: None)
    said = CliRunner().invoke(app, ["export", str(timm_run), "--format", "hub", "--repo", "me/x", "--dry-run"])
    assert said.exit_code == 0, said.output
    assert "would upload to me/x" in said.output
    assert "model.safetensors" in said.output
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
