"""Atomic writes, safe names, locks, the probe before training."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from moekd import atomic
from moekd.errors import ConfigError, DataError


def run_python(code: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("name", ["run", "step-00000120", "a.b", "mst_distill (2)", "café", "x" * 100])
def test_good_names_pass(name):
    assert atomic.safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (None, "empty"),
        ("..", "starts with a dot"),
        (".hidden", "starts with a dot"),
        ("../../x", "'/' is not allowed"),
        ("/etc/passwd", "'/' is not allowed"),
        ("a\\b", "is not allowed"),
        ("C:x", "':' is not allowed"),
        ("a\0b", "can't be shown"),
        ("a\nb", "can't be shown"),
        ("\u202egnp", "can't be shown"),
        ("\ud800", "can't be shown"),
        ("x" * 101, "longer than 100"),
        ("\U0001f600" * 30, "longer than 100"),
        ("nul", "Windows reserves"),
        ("COM1.txt", "Windows reserves"),
        ("end.", "ends with a dot"),
        ("end ", "ends with a dot or blank"),
        ("what?", "is not allowed"),
    ],
)
def test_bad_names_are_refused_with_the_reason(name, reason):
    """S6: separators, NUL, long names, names that Windows reserves."""
    with pytest.raises(ConfigError, match="run name") as failure:
        atomic.safe_name(name, "run name")
    assert reason in str(failure.value)
    assert len(str(failure.value)) < 700


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    atomic.write_text(path, "n\u00e4u")
    assert path.read_bytes() == "n\u00e4u".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_failed_write_keeps_the_old_content_and_no_temporary(tmp_path, monkeypatch, operation):
    path = atomic.write_text(tmp_path / "a.txt", "old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_takes_scalars_of_numpy_and_torch(tmp_path):
    value = {
        "t": torch.tensor(1.5),
        "n": np.int64(3),
        "a": np.arange(2),
        "nan": math.nan,
        "inf": np.float64("inf"),
        "p": tmp_path,
    }
    content = json.loads(atomic.write_json(tmp_path / "a.json", value).read_text())
    assert content == {"t": 1.5, "n": 3, "a": [0, 1], "nan": None, "inf": None, "p": str(tmp_path)}


def test_json_refuses_what_it_can_not_hold(tmp_path):
    with pytest.raises(TypeError, match="object has no JSON form"):
        atomic.write_json(tmp_path / "a.json", {"x": object()})
    assert os.listdir(tmp_path) == []


def test_append_returns_the_end_and_cuts_a_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    first = atomic.append_jsonl(path, {"a": 1})
    assert first == path.stat().st_size
    with open(path, "ab") as file:
        file.write(b'{"torn": 1')
    assert atomic.append_jsonl(path, {"b": 2}) == path.stat().st_size
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"b": 2}]


def test_append_to_a_file_that_is_one_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"torn")
    atomic.append_jsonl(path, {"a": 1})
    assert path.read_bytes() == b'{"a": 1}\n'


def test_directory_appears_at_once_and_everything_is_synced_before(tmp_path, monkeypatch):
    target, events = tmp_path / "target", []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        return fsync(descriptor)

    def record_replace(source, destination):
        events.append(("replace", Path(destination).name))
        return replace(source, destination)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic.atomic_directory(target) as temporary:
        assert temporary.parent == tmp_path
        (temporary / "sub").mkdir()
        (temporary / "a").write_text("a")
        (temporary / "sub" / "b").write_text("b")
        assert not target.exists()
    done = events.index(("replace", "target"))
    assert {name for kind, name in events[:done] if kind == "fsync"} >= {"a", "b", "sub", temporary.name}
    assert ("fsync", tmp_path.name) in events[done:]
    assert (target / "sub" / "b").read_text() == "b"
    assert os.listdir(tmp_path) == ["target"]


def test_failed_directory_leaves_nothing(tmp_path):
    def interrupted():
        with atomic.atomic_directory(tmp_path / "target") as temporary:
            (temporary / "a").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_existing_directory_is_never_overwritten(tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match="exists already"), atomic.atomic_directory(tmp_path / "target"):
        pass
    with pytest.raises(DataError, match="exists already"), atomic.atomic_directory(tmp_path / "other"):
        (tmp_path / "other").mkdir()
    assert sorted(os.listdir(tmp_path)) == ["other", "target"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from moekd.atomic import atomic_directory, temporary_sibling
temporary_sibling(Path(sys.argv[1]) / "file.txt").write_text("x")
with atomic_directory(Path(sys.argv[1]) / "target") as temporary:
    (temporary / "a").write_text("a")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    (tmp_path / ".keep.tmp").write_text("mine")
    (tmp_path / "data").mkdir()
    assert len(os.listdir(tmp_path)) == 4
    assert len(atomic.remove_leftovers(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == [".keep.tmp", "data"]
    assert atomic.remove_leftovers(tmp_path / "absent") == []


def test_second_process_is_refused_with_pid_and_host(tmp_path):
    """C6: the message names who holds the lock."""
    code = """
import sys
from pathlib import Path
from moekd.atomic import FolderLock
from moekd.errors import DataError
try:
    FolderLock(Path(sys.argv[1])).acquire()
except DataError as error:
    print(error)
else:
    print("acquired")
"""
    with atomic.FolderLock(tmp_path):
        message = run_python(code, tmp_path).stdout
        with pytest.raises(DataError, match="in use"):
            atomic.FolderLock(tmp_path).acquire()
    assert f"in use by process {os.getpid()} on host {socket.gethostname()}" in message
    assert run_python(code, tmp_path).stdout == "acquired\n"


def test_lock_of_a_killed_process_is_free_even_while_its_forked_child_lives(tmp_path):
    code = """
import os, signal, sys, time
from pathlib import Path
from moekd.atomic import FolderLock
lock = FolderLock(Path(sys.argv[1])).acquire()
child = os.fork()
if child == 0:
    os.close(1); os.close(2)
    time.sleep(60)
    os._exit(0)
time.sleep(0.3)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = run_python(code, tmp_path)
    child = int(result.stdout)
    try:
        assert result.returncode == -signal.SIGKILL
        os.kill(child, 0)
        with atomic.FolderLock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_probe_passes_and_leaves_nothing(tmp_path):
    atomic.probe_writable(tmp_path / "new" / "run", need_bytes=1)
    assert os.listdir(tmp_path / "new" / "run") == []


def test_probe_names_the_file_in_the_way(tmp_path):
    """C4: before the first step."""
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(DataError, match="file is a file, not a folder"):
            atomic.probe_writable(folder)


def test_probe_says_needed_and_available(tmp_path):
    """C4: before the first step."""
    with pytest.raises(DataError, match=r"needed 1,000,000,000,000,000,000 bytes, available [\d,]+ bytes"):
        atomic.probe_writable(tmp_path, need_bytes=10**18)


def test_probe_refuses_a_folder_without_permission():
    """C4: before the first step."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(DataError, match="Permission denied"):
                atomic.probe_writable(Path(root))
            with pytest.raises(DataError, match="Permission denied"):
                atomic.probe_writable(Path(root) / "run")
        finally:
            os.seteuid(user)
            os.chmod(root, 0o755)
