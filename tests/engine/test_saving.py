"""Checkpoints that can't be written, states that can't be restored, and runs that an earlier version began."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from moekd import checkpoint, run_checkpoints
from moekd.checkpoint import find_latest, load_checkpoint, save_checkpoint
from moekd.errors import CheckpointError, ConfigError, DataError, UnsavedError
from moekd.tracking import RunFolder

from .test_resume import stopped
from .tiny import Finished, same_weights, simple, train

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def with_policy(policy: str) -> dict[str, Any]:
    raw = simple()
    raw["trainer"] |= {"on_failed_save": policy}
    return raw


@pytest.fixture(scope="module")
def plain(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a run of six steps that was never disturbed; it saves after steps 2, 3, 5, 6 and at its end."""
    return train(simple(), Path(tmp_path_factory.mktemp("plain")))


class FullDisk:
    """Lets writes of checkpoints fail, from one of them on, as often as wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, times: int = 10**6) -> None:
        self.saves, self.failed, write = 0, 0, checkpoint.write_manifest

        def fail(*arguments: Any) -> None:
            self.saves += 1
            if self.saves >= first and self.failed < times:
                self.failed += 1
                raise OSError(errno.ENOSPC, "No space left on device")
            write(*arguments)

        monkeypatch.setattr(checkpoint, "write_manifest", fail)


MESSAGE = r"disk full: .*000002 needs about [\d,]+ bytes, available are [\d,]+; .*free some space and resume"


def test_c3_a_full_disk_stops_the_run_and_the_last_checkpoint_stands(
    plain: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C3: the message has needed and available bytes; nothing half-written stays; the run goes on later, exactly."""
    with monkeypatch.context() as patch:
        FullDisk(patch, 3)
        with pytest.raises(UnsavedError, match=MESSAGE):
            train(simple(), tmp_path)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(os.listdir(folder)) == ["000000", "000001", "latest"]
    assert find_latest(folder) == (folder / "000001", [])
    resumed = train(simple(), tmp_path, resume="auto")
    assert same_weights(resumed.weights(), plain.weights()) == []
    assert resumed.records() == plain.records()


def test_c3_a_run_goes_on_without_its_checkpoints_or_waits_for_space(
    plain: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """C3: by the policy `continue` or `wait`; neither changes a number."""
    monkeypatch.setattr(run_checkpoints, "RETRY", 0.01)
    for policy, said in (("continue", "goes on without this checkpoint"), ("wait", "the run waits, and tries again")):
        with monkeypatch.context() as patch:
            disk = FullDisk(patch, 3, times=2)
            run = train(with_policy(policy), tmp_path, policy)
        assert disk.failed == 2
        assert said in caplog.text
        assert caplog.text.count("disk full") == (2 if policy == "continue" else 1)
        assert same_weights(run.weights(), plain.weights()) == []
        assert run.records() == plain.records()
        names = sorted(path.name for path in run.run.checkpoints.glob("0*"))
        assert len(names) == (3 if policy == "continue" else 5)
        caplog.clear()


def test_c3_a_signal_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C3, R5: a run that waits for space can be stopped; its last checkpoint stands."""
    disk = FullDisk(monkeypatch, 2)

    def interrupt() -> None:
        while not disk.failed:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(UnsavedError, match="disk full"):
        train(with_policy("wait"), tmp_path)
    thread.join()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("0*")] == ["000000"]


def test_c4_what_can_not_be_written_is_found_before_the_first_step(
    plain: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4: too little space, at the start and when a run goes on; a folder without permission; a file in the way."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    shutil.copytree(plain.run.path, tmp_path / "old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        for name, resume in (("new", None), ("old", "auto")):
            with pytest.raises(DataError, match=r"too little space .* needed [\d,]+ bytes, available 1,000 bytes"):
                train(simple(), tmp_path, name, resume=resume)
    assert not (tmp_path / "new" / "config.yaml").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        RunFolder(tmp_path, "file")
    with pytest.raises(DataError, match="is a file, not a folder"):
        RunFolder(tmp_path / "file", "run")


def test_c4_a_read_only_folder_is_a_clear_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    """C4: also where the folder of all runs, or a run's own folder, can't be written."""
    root = tmp_path_factory.mktemp("locked")
    RunFolder(root, "old")
    folders, user = [root, root / "old", root / "old" / "checkpoints"], os.geteuid()
    for parent in root.parents[: len(root.parents) - 2]:
        os.chmod(parent, 0o755)
    for folder in folders:
        os.chmod(folder, 0o555)
    try:
        if user == 0:
            os.seteuid(65534)
        for name in ("new", "old"):
            with pytest.raises(DataError, match=r"can't write to .*Permission denied; choose another place"):
                RunFolder(root, name)
    finally:
        os.seteuid(user)
        for folder in folders:
            os.chmod(folder, 0o755)


def changed_state(source: Path, target: Path, **parts: Any) -> Path:
    """Write a checkpoint again with other parts."""
    state, meta = load_checkpoint(source)
    return save_checkpoint(target, "changed", state | parts, meta)


def test_a_random_state_that_can_not_be_restored_is_an_error_unless_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R6 (rule 6): nothing is left unrestored in silence."""
    stopped(simple(), tmp_path, 5)
    newest, _ = find_latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    ranks = load_checkpoint(newest)[0]["random"]["ranks"]
    for name, random in (("none", {"ranks": []}), ("gpu", {"ranks": [ranks[0] | {"cuda": [ranks[0]["torch"]]}]})):
        path = changed_state(newest, tmp_path / name, random=random)
        if name == "gpu" and torch.cuda.is_available():
            continue
        with pytest.raises(CheckpointError, match=r"random state can't be restored.*; --resume-relaxed random goes on"):
            train(simple(), tmp_path, resume=path)
    assert "new random numbers from here on" not in caplog.text
    run = train(simple(), tmp_path, resume=path, relaxed=["random"])
    assert "new random numbers from here on" in caplog.text
    assert len(run.records("stage_end")) == 1
    with pytest.raises(ConfigError, match=r"--resume-relaxed: unknown 'randon'; did you mean 'random'\?"):
        train(simple(), tmp_path, resume="auto", relaxed=["randon"])


def test_records_that_are_gone_are_an_error_unless_they_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R6 (rule 6): the log of a resumed run has no hole in silence."""
    stopped(simple(), tmp_path, 5)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"records were removed; .*--resume-relaxed metrics goes on"):
        train(simple(), tmp_path, resume="auto")
    run = train(simple(), tmp_path, resume="auto", relaxed=["metrics"])
    assert "the records before the checkpoint are not complete" in caplog.text
    assert len(run.records("stage_end")) == 1


def test_a_state_that_does_not_fit_is_a_clear_error(tmp_path: Path) -> None:
    """R6: settings that were allowed to differ, but can't."""
    stopped(simple(), tmp_path, 5)
    wider = simple(student=simple()["student"] | {"hidden": [13]})
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint .* does not fit this program: .*size mismatch"):
        train(wider, tmp_path, resume="auto", allow=["student"])


def test_c7_a_run_of_an_earlier_version_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C7: format 1 as it was first written: before some settings existed, with generators of the main process alone."""
    shutil.copytree(FIXTURES / "run_v1", tmp_path / "run")
    raw = json.loads((tmp_path / "run" / "recipe.json").read_text())
    before = RunFolder(tmp_path, "run", resume=True).read_metrics()
    caplog.set_level(logging.INFO)
    run = train(raw, tmp_path, resume="auto")
    assert "resumed from" in caplog.text
    assert run.records("stage_end")[0]["steps"] == 6
    assert run.run.read_metrics()[: len(before)] == before
    later = raw | {"trainer": raw["trainer"] | {"on_failed_save": "wait"}}
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(FIXTURES / "run_v1", tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"trainer.on_failed_save: 'stop' in the checkpoint, 'wait' now"):
        train(later, tmp_path, resume="auto")


def test_c7_other_formats_say_what_to_do(tmp_path: Path) -> None:
    """C7: a format that this version does not read names the version that does."""
    for version, advice in (
        (0, "finish the run with the moekd that began it: pip install 'moekd=="),
        (2, "it comes from a newer moekd; upgrade this one: pip install --upgrade moekd"),
    ):
        path = tmp_path / str(version)
        shutil.copytree(FIXTURES / "run_v1" / "checkpoints" / "000002", path)
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
        with pytest.raises(CheckpointError, match="unknown format version") as error:
            load_checkpoint(path)
        assert advice in str(error.value)
