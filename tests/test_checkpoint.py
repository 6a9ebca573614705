"""Checkpoints: round trip, damage, kill -9 during a save, full disks, rotation, foreign runs."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from moekd import checkpoint
from moekd.checkpoint import (
    check_same,
    clean_leftovers,
    config_hash,
    find_latest,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from moekd.errors import CheckpointError

META = {"step": 17, "stage": "distill", "best": float("-inf"), "config": {"lr": 0.1, "stages": [{"epochs": 3}]}}


def make_state(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 3, generator=generator)).sum().backward()
    optimizer.step()
    return {
        "student": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": {"torch": generator.get_state(), "numpy": {"state": 2**127 + 1}},
        "progress": {"step": seed, "loss": float("nan"), "cursor": (1, None)},
    }


def save(folder: Path, seed: int, **options) -> Path:
    return save_checkpoint(folder, f"step-{seed:04d}", make_state(seed), {**META, "step": seed}, **options)


def step_of(path: Path | None) -> int:
    assert path is not None
    return load_checkpoint(path)[1]["step"]


def test_round_trip(tmp_path):
    state = make_state(3)
    path = save_checkpoint(tmp_path, "first", state, META)
    loaded, meta = load_checkpoint(path)
    assert path == tmp_path / "first"
    assert meta == META
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded["student"][key], value) for key, value in state["student"].items())
    twin = torch.optim.Adam(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).parameters())
    twin.load_state_dict(loaded["optimizer"])
    for index, slots in state["optimizer"]["state"].items():
        assert all(torch.equal(twin.state_dict()["state"][index][key], value) for key, value in slots.items())
    assert loaded["random"]["numpy"] == {"state": 2**127 + 1}
    assert loaded["progress"]["cursor"] == (1, None)
    assert (tmp_path / "latest").read_text() == "first\n"
    assert sorted(os.listdir(tmp_path)) == ["first", "latest"]


def test_files_are_safetensors_and_json_only(tmp_path):
    path = save(tmp_path, 1)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert not any(file.read_bytes()[:2] == b"\x80\x04" or zip_like(file) for file in path.iterdir())
    recorded = json.loads((path / "manifest.json").read_text())
    assert recorded["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(recorded["files"]) == {file.name for file in path.iterdir()} - {"manifest.json"}


def zip_like(file: Path) -> bool:
    return file.read_bytes()[:2] == b"PK"


def flip(content: bytes, place: int, mask: int) -> bytes:
    return content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


def all_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


FILES = [f"{part}.{kind}" for part in make_state() for kind in ("json", "safetensors")]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_any_damage_is_refused_with_the_file_named_and_the_one_before_is_found(tmp_path, name):
    """C1: flips, cuts, additions and missing files."""
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    assert name in all_files(path)
    original = (path / name).read_bytes()
    places = sorted(
        {0, 1, 7, 8, 9, len(original) // 2, len(original) - 2, len(original) - 1} & set(range(len(original)))
    )
    damaged = [
        original[:place] + bytes([original[place] ^ bit]) + original[place + 1 :] for place in places for bit in (1, 32)
    ]
    damaged += [original[:place] for place in places] + [original + b"x", original + b"\n"]
    for content in damaged:
        (path / name).write_bytes(content)
        with pytest.raises(CheckpointError) as failure:
            load_checkpoint(path)
        assert name in str(failure.value)
        if name != "manifest.json":
            assert "sha256 mismatch" in str(failure.value)
        found, skipped = find_latest(tmp_path)
        assert step_of(found) == 1
        assert [entry[0] for entry in skipped] == [path]
        assert name in skipped[0][1]
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.* is missing"):
        load_checkpoint(path)
    assert step_of(find_latest(tmp_path)[0]) == 1
    (path / name).write_bytes(original)
    assert step_of(find_latest(tmp_path)[0]) == 2


def test_every_byte_of_a_manifest_counts(tmp_path):
    """C1: of the manifest too."""
    path = save_checkpoint(tmp_path, "a", {"s": {"x": 1}}, {"step": 17})
    file = path / "manifest.json"
    original = file.read_bytes()
    for place in range(len(original)):
        file.write_bytes(flip(original, place, 1))
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            load_checkpoint(path)


KILLED_SAVES = """
import os, signal, sys
from pathlib import Path
import torch
import moekd.checkpoint as checkpoint

root, count = Path(sys.argv[1]), 0

def mortal(function, moment):
    def call(*arguments, **keywords):
        global count
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return function(*arguments, **keywords)
    return call

def save(folder, step, **options):
    state = {"student": {"w": torch.full((1000,), float(step))}, "progress": {"step": step}}
    checkpoint.save_checkpoint(folder, f"step-{step}", state, {"step": step}, **options)

torch.set_num_threads(1)
for moment in range(100):
    save(root / f"{moment:02d}", 1)
    child = os.fork()
    if child == 0:
        places = [(os, "fsync"), (os, "replace"), (checkpoint.shutil, "rmtree")]
        places += [(checkpoint, name) for name in ("save_file", "_write_part", "write_manifest", "write_text")]
        for module, name in places:
            setattr(module, name, mortal(getattr(module, name), moment))
        save(root / f"{moment:02d}", 2, keep=1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_kill_during_a_save_always_leaves_a_whole_checkpoint(tmp_path):
    """R3: before and after every write, fsync, rename and deletion."""
    command = [sys.executable, "-c", KILLED_SAVES, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    folders = sorted(tmp_path.iterdir())
    assert 20 <= len(folders) < 100
    steps = []
    for folder in folders:
        found, skipped = find_latest(folder)
        steps.append(step_of(found))
        assert skipped == []
        assert found is not None
        assert torch.equal(load_checkpoint(found)[0]["student"]["w"], torch.full((1000,), float(steps[-1])))
        clean_leftovers(folder)
        assert set(os.listdir(folder)) <= {"step-1", "step-2", "latest"}
        resumed = save_checkpoint(folder, "step-3", {"progress": {"step": 3}}, {"step": 3}, keep=1)
        assert sorted(os.listdir(folder)) == ["latest", "step-3"]
        assert step_of(resumed) == 3
    assert steps == sorted(steps)
    assert steps.count(1) >= 10
    assert steps.count(2) >= 4


def test_rotation_never_leaves_a_moment_without_a_valid_checkpoint(tmp_path, monkeypatch):
    """C5: with `keep: 1`, before and after every operation."""
    moments = []

    def watched(module, name):
        function = getattr(module, name)

        def call(*arguments, **keywords):
            moments.append(find_latest(tmp_path)[0])
            result = function(*arguments, **keywords)
            moments.append(find_latest(tmp_path)[0])
            return result

        monkeypatch.setattr(module, name, call)

    save(tmp_path, 1)
    for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (os, "unlink"), (checkpoint, "save_file")):
        watched(module, name)
    for seed in range(2, 5):
        save(tmp_path, seed, keep=1)
    assert len(moments) > 50
    assert all(moment is not None for moment in moments)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-0004"]


def test_rotation_keeps_the_newest_by_time_of_saving_and_protected_ones(tmp_path):
    for seed in (5, 1, 9, 3):
        save(tmp_path, seed, keep=2, protect={"step-0005"})
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-0003", "step-0005", "step-0009"]
    assert step_of(find_latest(tmp_path)[0]) == 3
    with pytest.raises(CheckpointError, match="keep=0"):
        save(tmp_path, 10, keep=0)


def test_failed_deletion_is_a_warning(tmp_path, monkeypatch, caplog):
    """C5: the run goes on."""
    save(tmp_path, 1)

    def fail(path, *arguments, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", fail)
    with caplog.at_level(logging.WARNING):
        path = save(tmp_path, 2, keep=1)
    assert "could not delete the old checkpoint" in caplog.text
    monkeypatch.undo()
    assert find_latest(tmp_path) == (path, [])
    assert len(clean_leftovers(tmp_path)) == 1


def test_name_in_use_gets_a_number_and_is_newest(tmp_path):
    first = save(tmp_path, 1)
    before = (first / "manifest.json").read_bytes()
    second = save(tmp_path, 1)
    assert second.name == "step-0001-2"
    assert (first / "manifest.json").read_bytes() == before
    assert find_latest(tmp_path)[0] == second


def test_disk_full_reported_by_a_write(tmp_path, monkeypatch):
    """C3: needed and available bytes are told; nothing half-written stays."""
    first = save(tmp_path, 1)

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"disk full: .*step-0002 needs about [\d,]+ bytes, available are [\d,]+"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-0001"]
    assert find_latest(tmp_path) == (first, [])


REALLY_FULL = """
import os, sys
from pathlib import Path
import torch
from moekd.checkpoint import find_latest, save_checkpoint
from moekd.errors import CheckpointError
folder = Path(sys.argv[1])
first = save_checkpoint(folder, "small", {"student": {"w": torch.ones(10)}}, {"step": 1})
for part in ({"w": torch.ones(10**6)}, {"text": "x" * 10**6}):
    try:
        save_checkpoint(folder, "large", {"student": part}, {"step": 2})
    except CheckpointError as error:
        print(error)
assert find_latest(folder) == (first, []), find_latest(folder)
assert sorted(os.listdir(folder)) == ["latest", "small"], os.listdir(folder)
"""


def test_disk_really_full(tmp_path):
    """C3: on a small file system of its own."""
    mount = f"mount -t tmpfs -o size=256k tmpfs {tmp_path} && "
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rm", "sh", "-c", mount + "true"], capture_output=True).returncode:
        pytest.skip("this system does not let a user mount a small file system (unshare -rm)")
    command = [unshare, "-rm", "sh", "-c", mount + 'exec "$@"', "sh", sys.executable, "-c", REALLY_FULL, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("disk full: checkpoint") == 2
    assert "needs about 4,000,000 bytes" in result.stdout


def test_unwritable_place_is_a_clear_error(tmp_path):
    """C4: a file in the way."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "file", 1)


def test_state_that_can_not_be_stored_names_part_and_path_and_changes_nothing(tmp_path):
    first = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"part 'optimizer' .*state 'slots\.0'"):
        save_checkpoint(tmp_path, "bad", {"optimizer": {"slots": [object()]}}, META)
    with pytest.raises(CheckpointError, match="meta data hold tensors"):
        save_checkpoint(tmp_path, "bad", {"s": {}}, {"x": torch.ones(1)})
    assert find_latest(tmp_path) == (first, [])
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-0001"]


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("../x", {"s": {}}),
        ("latest", {"s": {}}),
        ("a", {"../s": {}}),
        ("a", {"manifest": {}}),
        ("a", {}),
        (".a", {"s": {}}),
    ],
)
def test_unsafe_names_are_refused(tmp_path, name, state):
    with pytest.raises(CheckpointError, match=r"can't be used|refused"):
        save_checkpoint(tmp_path / "checkpoints", name, state, {})
    assert os.listdir(tmp_path) == []


def test_empty_and_absent_folders_have_no_checkpoint(tmp_path):
    assert find_latest(tmp_path) == (None, [])
    assert find_latest(tmp_path / "absent") == (None, [])
    (tmp_path / "notes").mkdir()
    assert "no complete checkpoint" in find_latest(tmp_path)[1][0][1]


def test_verify_does_not_need_to_load(tmp_path):
    assert verify_checkpoint(save(tmp_path, 4))["meta"]["step"] == 4


def test_same_settings_pass():
    check_same(META, {"config": META["config"]})
    check_same({"world_size": 2, "x": float("nan")}, {"world_size": 2, "x": float("nan")})


def test_every_difference_is_named():
    """R6: each with both values."""
    old = {"lr": 0.1, "stages": [{"epochs": 3, "name": "a"}], "gone": 1}
    new = {"lr": 0.2, "stages": [{"epochs": 5, "name": "a"}, {"epochs": 1}]}
    meta = {
        "config": old,
        "config_hash": config_hash(old),
        "teacher_fingerprints": {"audio": "aa", "text": "bb"},
        "dataset_fingerprint": "d1",
        "world_size": 1,
    }
    expected = {
        "config": new,
        "config_hash": config_hash(new),
        "teacher_fingerprints": {"audio": "xx", "image": "cc"},
        "dataset_fingerprint": "d2",
        "world_size": 2,
    }
    with pytest.raises(CheckpointError) as failure:
        check_same(meta, expected)
    lines = str(failure.value).splitlines()[1:-1]
    assert lines == [
        "  lr: 0.1 in the checkpoint, 0.2 now",
        "  stages[0].epochs: 3 in the checkpoint, 5 now",
        "  stages[1]: (absent) in the checkpoint, {'epochs': 1} now",
        "  gone: 1 in the checkpoint, (absent) now",
        "  teacher_fingerprints.audio: 'aa' in the checkpoint, 'xx' now",
        "  teacher_fingerprints.text: 'bb' in the checkpoint, (absent) now",
        "  teacher_fingerprints.image: (absent) in the checkpoint, 'cc' now",
        "  dataset_fingerprint: 'd1' in the checkpoint, 'd2' now",
        "  world_size: 1 in the checkpoint, 2 now",
    ]
    allow = {"stages", "gone", "teacher_fingerprints", "dataset_fingerprint", "world_size"}
    with pytest.raises(CheckpointError) as failure:
        check_same(meta, expected, allow)
    assert str(failure.value).splitlines()[1:-1] == ["  lr: 0.1 in the checkpoint, 0.2 now"]
    check_same(meta, expected, allow | {"lr"})


def test_allowing_a_key_does_not_allow_its_namesakes():
    with pytest.raises(CheckpointError, match="stages_extra"):
        check_same({"config": {"stages_extra": 1}}, {"config": {"stages_extra": 2}}, {"stages"})


def test_hash_alone_is_compared_where_a_config_is_missing():
    with pytest.raises(CheckpointError, match="config_hash"):
        check_same({"config_hash": "a"}, {"config_hash": "b", "config": {}})
    with pytest.raises(CheckpointError, match=r"config_hash: \(absent\) in the checkpoint"):
        check_same({}, {"config_hash": "b"})


def test_config_hash_ignores_the_order_of_keys_only():
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": [1, 2], "a": 1})
    assert config_hash({"b": [1, 2]}) != config_hash({"b": [2, 1]})
