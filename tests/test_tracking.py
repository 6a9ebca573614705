"""The run's folder and the trackers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moekd import tracking
from moekd.errors import ConfigError, DataError, MissingDependencyError
from moekd.tracking import RunFolder, Trackers, flat_config, read_jsonl


def test_folder_has_its_places(tmp_path):
    run = RunFolder(tmp_path, "first")
    assert run.path == tmp_path / "first"
    assert run.checkpoints.is_dir()
    assert run.figures.is_dir()
    names = [path.name for path in (run.config, run.environment, run.metrics, run.results, run.student, run.report)]
    assert names == ["config.yaml", "environment.json", "metrics.jsonl", "results.json", "student", "report.html"]


def test_existing_run_needs_resume(tmp_path):
    RunFolder(tmp_path, "a").log({"type": "train"})
    with pytest.raises(ConfigError, match=r"run 'a' exists already .*--resume.*--name"):
        RunFolder(tmp_path, "a")
    assert RunFolder(tmp_path, "a", resume=True).read_metrics() == [{"type": "train"}]


def test_other_processes_of_a_launcher_leave_the_check_to_the_first(tmp_path, monkeypatch):
    RunFolder(tmp_path, "a").log({"type": "train"})
    monkeypatch.setenv("RANK", "1")
    assert RunFolder(tmp_path, "a").path == tmp_path / "a"
    RunFolder(tmp_path, "b")
    assert os.listdir(tmp_path) == ["a"]


def test_empty_or_only_locked_folder_is_fine(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").write_text("{}")
    RunFolder(tmp_path, "a")


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "nul", "a\0", "x" * 300])
def test_unsafe_run_names_create_nothing(tmp_path, name):
    """S6: run names that would leave the folder create nothing."""
    with pytest.raises(ConfigError, match="run name"):
        RunFolder(tmp_path / "runs", name)
    assert os.listdir(tmp_path) == []


def test_file_in_the_way(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        RunFolder(tmp_path, "a")


def test_second_run_in_the_same_folder_is_refused(tmp_path):
    """C6: the run's lock."""
    run = RunFolder(tmp_path, "a")
    with run.lock(), pytest.raises(DataError, match=f"process {os.getpid()}"):
        RunFolder(tmp_path, "a", resume=True).lock().acquire()


def test_config_round_trip(tmp_path):
    config = {"b": [1, (2, 3)], "a": {"x": None, "t": "n\u00f6"}, "inf": float("inf"), "path": tmp_path}
    run = RunFolder(tmp_path, "a")
    run.write_config(config)
    loaded = yaml.safe_load(run.config.read_text())
    assert loaded == {**config, "b": [1, [2, 3]], "path": str(tmp_path)}
    assert list(loaded) == list(config)


def test_environment_names_versions_and_never_variables(tmp_path, monkeypatch):
    """S9: the description of the machine has no variables."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.setattr(sys, "argv", ["moekd", "token=hf_secret_value"])
    run = RunFolder(tmp_path, "a")
    run.write_environment()
    run.write_config({"lr": 0.1})
    trackers = Trackers(Accelerator(cpu=True), ["tensorboard"], run)
    trackers.start({"lr": 0.1})
    trackers.end()
    recorded = json.loads(run.environment.read_text())
    assert recorded["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert recorded["python"].startswith("3.")
    assert recorded["cpu_count"] == os.cpu_count()
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert all(b"hf_secret_value" not in path.read_bytes() for path in files)


def test_commit_is_recorded_only_for_a_tracked_package(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    assert tracking.git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "other.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "first")
    assert tracking.git_commit(tmp_path) is None
    (tmp_path / "tracking.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "second")
    assert tracking.git_commit(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "tracking.py").write_text("changed")
    recorded = tracking.git_commit(tmp_path)
    assert recorded is not None
    assert recorded["changed"]


def test_metrics_of_all_scalar_kinds(tmp_path):
    run = RunFolder(tmp_path, "a")
    end = run.log({"type": "train", "losses": {"kd": torch.tensor(0.5), "ce": np.float32(0.25)}, "lr": float("nan")})
    assert end == run.position() == run.metrics.stat().st_size
    assert run.read_metrics() == [{"type": "train", "losses": {"kd": 0.5, "ce": 0.25}, "lr": None}]


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    run = RunFolder(tmp_path, "a")
    assert run.position() == 0
    run.log({"step": 1})
    position = run.position()
    run.log({"step": 2})
    run.log({"step": 3})
    run.truncate_to(position)
    run.log({"step": 20})
    assert run.read_metrics() == [{"step": 1}, {"step": 20}]
    run.truncate_to(0)
    assert run.read_metrics() == []


def test_metrics_shorter_than_the_checkpoint_or_changed_are_refused(tmp_path):
    run = RunFolder(tmp_path, "a")
    run.log({"step": 1})
    with pytest.raises(DataError, match="records were removed"):
        run.truncate_to(10_000)
    with pytest.raises(DataError, match="not the end of a record"):
        run.truncate_to(5)
    assert run.read_metrics() == [{"step": 1}]
    run.metrics.unlink()
    run.truncate_to(0)
    with pytest.raises(DataError, match="records were removed"):
        run.truncate_to(12)


def test_torn_last_line_is_left_out_and_a_bad_one_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    assert read_jsonl(path) == []
    path.write_bytes(b'{"a": 1}\n{"b": 2')
    assert read_jsonl(path) == [{"a": 1}]
    path.write_bytes(b'{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        read_jsonl(path)
    path.write_bytes(b"[1]\n")
    with pytest.raises(DataError, match="line 1 is no JSON object but list"):
        read_jsonl(path)


def test_log_that_can_not_be_written_is_a_clear_error(tmp_path):
    run = RunFolder(tmp_path, "a")
    run.metrics.mkdir()
    with pytest.raises(DataError, match=r"can't append to .*metrics\.jsonl"):
        run.log({"step": 1})


def test_tensorboard_gets_the_scalars(tmp_path):
    run = RunFolder(tmp_path, "a")
    trackers = Trackers(Accelerator(cpu=True), ["tensorboard", "none", "tensorboard"], run)
    trackers.start({"lr": 0.1, "stages": [{"epochs": 3, "monitor": None}]})
    for step in range(3):
        trackers.log({"losses": {"kd": torch.tensor(1.0 / (step + 1))}, "lr": 0.1, "phase": "main"}, step=step)
    trackers.end()
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["losses/kd", "lr"]
    assert [(event.step, event.value) for event in events.Scalars("losses/kd")] == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
    ]


def test_no_tracker_writes_nothing(tmp_path):
    run = RunFolder(tmp_path, "a")
    before = sorted(run.path.rglob("*"))
    trackers = Trackers(Accelerator(cpu=True), ["none"], run)
    trackers.start({"lr": 0.1})
    trackers.log({"lr": 0.1}, step=1)
    trackers.end()
    assert sorted(run.path.rglob("*")) == before


def test_tracking_changes_no_random_number(tmp_path):
    """R7: trackers."""
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    trackers = Trackers(Accelerator(cpu=True), ["tensorboard"], RunFolder(tmp_path, "a"))
    trackers.start({"lr": 0.1})
    trackers.log({"lr": 0.1}, step=1)
    trackers.end()
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == np.random.get_state()[1].tolist()


def test_unknown_and_missing_trackers(tmp_path, monkeypatch):
    """F5: a missing package is named with how to install it."""
    run = RunFolder(tmp_path, "a")
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        Trackers(Accelerator(cpu=True), ["tensorbord"], run)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(
        MissingDependencyError, match=r"tracker 'mlflow' needs the package 'mlflow': .*pip install mlflow"
    ):
        Trackers(Accelerator(cpu=True), ["mlflow"], run)


def test_flat_config():
    config: dict = {"a": {"b": [1, {"c": "x"}]}, "empty": [], "none": None, "flag": True}
    assert flat_config(config) == {"a.b[0]": 1, "a.b[1].c": "x", "empty": "[]", "none": "None", "flag": True}
