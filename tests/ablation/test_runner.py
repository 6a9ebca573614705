"""Whole ablations: what runs, what fails, what is kept, and what a second call does."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from moekd.ablation import ablate, load_ablation, parse_shard, read_rows
from moekd.ablation.events import Outcome
from moekd.ablation.run import run_job
from moekd.errors import ConfigError, DataError, MissingDependencyError, StoppedError
from moekd.report.ablation_rows import rows_to_csv

from ..engine.conftest import _one_thread, _tiny_kinds  # noqa: F401
from ..engine.tiny import ROOT, PowerCutError, cut_after, train
from .small import BASE, QUICK, ROUTED_ONLY, TIMES, HereBackend, here, lasting, results_of, write_ablation  # noqa: F401

ARMS: dict[str, Any] = {
    "plain": {},
    "wide": {"student.hidden": [20]},
    "slow": {"stages.learn.optimizer": {"kind": "adam", "lr": 1e-5}},
}
BROKEN = {"stages.learn.optimizer": {"kind": "sgd", "lr": 1e30}, "stages.learn.steps": 6}
WAIT = 120


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of all results."""
    found = {path.parent.name: path.stat() for path in folder.glob("*/results.json")}
    return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in found.items()}


def table(text: str) -> list[dict[str, str]]:
    """Return the lines of a CSV file without times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(text.splitlines())]


def long_ablation(folder: Path) -> Path:
    """Write an ablation whose runs share a stage and save every other step."""
    recipe = {**BASE, "stages": [BASE["stages"][0] | {"epochs": 3}, BASE["stages"][2] | {"epochs": 4}], "masks": None}
    recipe["trainer"] = {**BASE["trainer"], "checkpoint_every": 2, "log_every": 1}
    arms = {"a": {}, "b": {"router.gate": "uniform"}, "c": {"router.selection": "dense"}}
    return write_ablation(folder, arms, recipe, baseline="a")


@pytest.fixture(scope="module")
def expected(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Return the folder of the long ablation, never disturbed."""
    folder = Path(tmp_path_factory.mktemp("expected"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moekd.ablation.dispatch.LocalBackend", HereBackend)
        return ablate(long_ablation(folder), runs=folder / "runs", quiet=True).folder


def test_everything_runs_once(tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    path = write_ablation(tmp_path, ARMS, QUICK, baseline="plain")
    outcome = ablate(path, runs=tmp_path / "runs", quiet=True)
    assert outcome.folder == tmp_path / "runs" / "small"
    assert (outcome.failures, outcome.left) == ({}, 0)
    assert len(here) == 1
    assert len(here[0].ran) == 3
    before = identities(outcome.folder)
    assert len(before) == 3
    assert ablate(path, runs=tmp_path / "runs", quiet=True).failures == {}
    assert len(here) == 1
    assert identities(outcome.folder) == before
    assert {row["status"] for row in read_rows(outcome.folder)} == {"done"}


def test_an_arm_more_and_a_seed_more(tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    folder = ablate(write_ablation(tmp_path, {"plain": {}}, QUICK), runs=tmp_path, quiet=True).folder
    before = identities(folder)
    more = {"plain": {}, "wide": {"student.hidden": [20]}}
    ablate(write_ablation(tmp_path, more, QUICK, title="More"), runs=tmp_path, quiet=True, seeds=2)
    assert len(here[1].ran) == 3
    assert identities(folder).items() >= before.items()
    assert len(read_rows(folder)) == 4


def test_an_arm_that_fails_stays_alone(tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    path = write_ablation(tmp_path, {"plain": {}, "broken": BROKEN, "wide": {"student.hidden": [20]}}, QUICK)
    outcome = ablate(path, runs=tmp_path, quiet=True)
    assert len(here[0].ran) == 3
    assert [outcome.names[key] for key in outcome.failures] == ["broken, seed 0"]
    rows = {row["arm"]: row for row in read_rows(outcome.folder)}
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done"]
    assert "not finite" in rows["broken"]["reason"] or "non-finite" in rows["broken"]["reason"]
    before = identities(outcome.folder)
    assert list(ablate(path, runs=tmp_path, quiet=True).failures) == list(outcome.failures)
    assert here[1].ran == list(outcome.failures)
    assert identities(outcome.folder) == before


def test_a_failure_is_forgotten_when_it_is_tried_again(tmp_path: Path, here: list[HereBackend], monkeypatch) -> None:  # noqa: F811
    path = write_ablation(tmp_path, {"plain": {}}, QUICK)
    with monkeypatch.context() as patch:
        cut_after(patch, 1)
        failed = ablate(path, runs=tmp_path, quiet=True)
    assert len(failed.failures) == 1
    assert "PowerCutError" in next(iter(failed.failures.values()))
    assert [row["status"] for row in read_rows(failed.folder)] == ["failed"]
    assert ablate(path, runs=tmp_path, quiet=True).failures == {}
    assert [row["status"] for row in read_rows(failed.folder)] == ["done"]
    assert list((failed.folder / "failures").iterdir()) == []


def test_shared_stages_that_fail(tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    broken = {"stages.cotrain.optimizer": {"kind": "sgd", "lr": 1e30}, "stages.cotrain.clip_norm": None}
    arms = {
        "plain": {"student.hidden": 6},
        "a": {**broken},
        "b": {**broken, "router.selection": "dense"},
    }
    recipe = {**BASE, "stages": [BASE["stages"][0] | {"epochs": 4}, BASE["stages"][2]], "masks": None}
    outcome = ablate(write_ablation(tmp_path, arms, recipe), runs=tmp_path, quiet=True)
    assert len(outcome.failures) == 3
    assert sorted(outcome.names[key] for key in outcome.dependent) == ["a, seed 0", "b, seed 0"]
    rows = {row["arm"]: row for row in read_rows(outcome.folder)}
    assert [row["status"] for row in rows.values()] == ["done", "failed", "failed"]
    assert rows["a"]["reason"].startswith("shared stages cotrain of 2 arms: ")
    assert "finite" in rows["b"]["reason"]


def test_stages_that_lost_their_checkpoint_run_again_when_they_are_needed(
    tmp_path: Path,
    here: list[HereBackend],  # noqa: F811
) -> None:
    recipe = {**BASE, "stages": [BASE["stages"][0], BASE["stages"][2]], "masks": None}
    arms = {"plain": {}, "dense": {"router.selection": "dense"}}
    folder = ablate(write_ablation(tmp_path, arms, recipe), runs=tmp_path, quiet=True).folder
    (shared,) = folder.glob("shared-*")
    for file in sorted((shared / "checkpoints").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    assert ablate(write_ablation(tmp_path, arms, recipe), runs=tmp_path, quiet=True).failures == {}
    assert len(here) == 1
    more = arms | {"uniform": {"router.gate": "uniform"}}
    assert ablate(write_ablation(tmp_path, more, recipe), runs=tmp_path, quiet=True).failures == {}
    assert [key.partition("-")[0] for key in here[1].ran] == ["shared", "uniform"]
    uniform = next(folder.glob("uniform-*"))
    assert results_of(folder, uniform.name)["routing"]["entropy"] > 0


def test_shards_make_the_same_table(tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    arms = {"a": {}, "b": {"router.gate": "uniform"}}
    path = write_ablation(tmp_path, arms, ROUTED_ONLY, seeds=2, baseline="a")
    whole = ablate(path, runs=tmp_path / "whole", quiet=True).folder
    first = ablate(path, runs=tmp_path / "parts", shard=parse_shard("1/2"), quiet=True)
    halfway = read_rows(first.folder)
    assert first.left == 2
    assert sorted(row["status"] for row in halfway) == ["done"] * 2 + ["missing"] * 2
    second = ablate(path, runs=tmp_path / "parts", shard=parse_shard("2/2"), quiet=True)
    assert second.left == 2
    assert table(rows_to_csv(read_rows(first.folder))) == table(rows_to_csv(read_rows(whole)))
    assert sorted(here[1].ran + here[2].ran) == sorted(here[0].ran)


def test_mistakes_come_before_anything_runs(tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    path = write_ablation(tmp_path, {"good": {}, "typo": {"student.hiden": [3]}}, QUICK)
    with pytest.raises(ConfigError, match=r"arm 'typo': .*did you mean 'hidden'"):
        ablate(path, runs=tmp_path / "runs", quiet=True)
    with pytest.raises(ConfigError, match="no part 3 of 2"):
        ablate(write_ablation(tmp_path, ARMS, QUICK), shard=(3, 2), runs=tmp_path / "runs", quiet=True)
    assert here == []
    assert not (tmp_path / "runs").exists()


def test_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_ablation(tmp_path, ARMS, QUICK)
    with pytest.raises(ConfigError, match="unknown backend 'roy'; did you mean 'ray'"):
        ablate(path, runs=tmp_path, backend="roy")  # type: ignore[arg-type]
    monkeypatch.setattr("moekd.ablation.runner.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'moekd\[ray\]'"):
        ablate(path, runs=tmp_path, backend="ray")


def test_folders_that_are_something_else(tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    path = write_ablation(tmp_path, {"plain": {}}, QUICK)
    train(QUICK, tmp_path / "runs", "small")
    with pytest.raises(DataError, match="is the folder of a single run"):
        ablate(path, runs=tmp_path / "runs", quiet=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file, not a folder"):
        ablate(path, runs=tmp_path / "file", quiet=True)
    assert here == []


def test_overrides_belong_to_the_file(tmp_path: Path) -> None:
    ablation = load_ablation(write_ablation(tmp_path, ARMS, QUICK))
    with pytest.raises(ConfigError, match="load_ablation"):
        ablate(ablation, ["trainer.log_every=1"], runs=tmp_path)
    with pytest.raises(ConfigError, match="load_ablation"):
        ablate(ablation, seeds=2, runs=tmp_path)


def test_a_signal_says_how_to_go_on(tmp_path: Path, here: list[HereBackend], capsys, monkeypatch) -> None:  # noqa: F811
    class Stopping(HereBackend):
        def start(self, slot: int, job: Any) -> None:
            super().start(slot, job)
            if len(self.ran) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("moekd.ablation.dispatch.LocalBackend", Stopping)
    monkeypatch.setenv("COLUMNS", "300")
    path = write_ablation(tmp_path, ARMS, QUICK)
    with pytest.raises(StoppedError) as caught:
        ablate(path, runs=tmp_path)
    assert caught.value.exit_code == 130
    assert str(caught.value) == (
        "stopped by signal 2 at 2 of 3 runs; continue with the same command: finished runs stay as they are"
    )
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("small: 3 runs to do, 0 finished before, in ")
    assert [line.partition(" after")[0] for line in said[1:3]] == ["plain, seed 0: finished", "wide, seed 0: finished"]


def test_what_the_terminal_says(tmp_path: Path, here: list[HereBackend], capsys, monkeypatch) -> None:  # noqa: F811
    path = write_ablation(tmp_path, {"plain": {}, "broken": BROKEN}, QUICK, settings={"few": {"data.labels": 8}})
    monkeypatch.setenv("COLUMNS", "300")
    ablate(path, runs=tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("few, ")]
    assert said[0].startswith("few, plain, seed 0: finished after ")
    assert said[1].startswith("few, broken, seed 0: failed after ")
    assert "finite" in said[1]
    ablate(path, runs=tmp_path)
    assert "small: 1 runs to do, 1 finished before" in capsys.readouterr().err
    ablate(path, runs=tmp_path, quiet=True)
    assert "seed 0" not in capsys.readouterr().err


def test_a_run_that_another_process_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moekd.ablation import make_plan
    from moekd.tracking import RunFolder

    job = make_plan(load_ablation(write_ablation(tmp_path, {"plain": {}}, QUICK))).jobs[0]
    lock = RunFolder(tmp_path, job["key"]).lock().acquire()
    monkeypatch.setattr("moekd.ablation.run.GRACE", 0.5)
    with pytest.raises(DataError, match="is in use by process"):
        run_job(job, tmp_path)
    monkeypatch.setattr("moekd.ablation.run.time.sleep", lambda seconds: lock.release())
    run_job(job, tmp_path)
    assert (tmp_path / job["key"] / "results.json").is_file()


@pytest.fixture
def begin() -> Iterator[Any]:
    """Return a function that starts `moekd ablate` with the tiny kinds; all are dead after the test."""
    begun: list[subprocess.Popen[str]] = []

    def process(*arguments: str | Path) -> subprocess.Popen[str]:
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.ablation.command", "ablate", *map(str, arguments)],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield process
    for process_ in begun:
        kill_all(process_)
        process_.communicate(timeout=WAIT)


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it has started, as a power cut does."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        member.suspend()
    for member in family:
        member.kill()


def progress_of(folder: Path) -> int:
    """Return the number of bytes that the runs have recorded."""
    return sum(path.stat().st_size for path in folder.glob("*/metrics.jsonl"))


def wait_for(folder: Path, recorded: float, alive: Callable[[], bool]) -> None:
    """Wait until the runs have recorded some bytes, or their process has ended."""
    end = time.monotonic() + WAIT
    while progress_of(folder) < recorded and alive():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_killed_at_any_moment_it_goes_on(tmp_path: Path, expected: Path, here: list[HereBackend]) -> None:  # noqa: F811
    path, folder = long_ablation(tmp_path), tmp_path / "runs" / "small"
    total, finished = progress_of(expected), {}
    for fraction in (0.15, 0.35, 0.6, 0.8):
        child = os.fork()
        if child == 0:
            try:
                ablate(path, runs=tmp_path / "runs", quiet=True)
            finally:
                os._exit(0)
        status: list[int] = []

        def alive(child: int = child, status: list[int] = status) -> bool:
            pid, code = os.waitpid(child, os.WNOHANG)
            status.extend([code] if pid else [])
            return pid == 0

        wait_for(folder, (fraction + 0.15 * random.random()) * total, alive)
        if not status:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert identities(folder).items() >= finished.items()
        finished = identities(folder)
    assert ablate(path, runs=tmp_path / "runs", quiet=True).failures == {}
    assert identities(folder).items() >= finished.items()
    assert len(identities(folder)) == 4
    assert lasting(read_rows(folder)) == lasting(read_rows(expected))


def test_the_command_and_its_processes_killed(tmp_path: Path, expected: Path, begin: Any) -> None:
    path, folder = long_ablation(tmp_path), tmp_path / "runs" / "small"
    process = begin(path, "--runs", tmp_path / "runs")
    wait_for(folder, (0.4 + 0.4 * random.random()) * progress_of(expected), lambda: process.poll() is None)
    assert process.poll() is None, process.communicate()
    kill_all(process)
    finished = identities(folder)
    process = begin(path, "--runs", tmp_path / "runs", "--jobs", 2)
    said, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 0, errors
    assert identities(folder).items() >= finished.items()
    assert f"{4 - len(finished)} runs to do" in errors
    assert "report.html" in said
    written = table((folder / "small.csv").read_text())
    assert [row | {"setting": ""} for row in written] == table(rows_to_csv(read_rows(expected)))


def test_cut_at_any_step_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: list[HereBackend]) -> None:  # noqa: F811
    class CutBackend(HereBackend):
        def start(self, slot: int, job: Any) -> None:
            self.ran.append(job["key"])
            run_job(job, self.folder)
            self.ended.append(Outcome(slot, "done"))

    recipe = {**QUICK, "stages": [QUICK["stages"][0], {**QUICK["stages"][0], "name": "again", "steps": 6}]}
    arms = {"a": {}, "b": {"stages.again.accumulate": 2}}
    path = write_ablation(tmp_path, arms, recipe)
    expected = ablate(path, runs=tmp_path / "whole", quiet=True).folder
    monkeypatch.setattr("moekd.ablation.dispatch.LocalBackend", CutBackend)
    rng, folder, finished, cuts = random.Random(3), tmp_path / "runs" / "small", {}, 0
    while len(finished) < 3:
        with monkeypatch.context() as patch:
            cut_after(patch, rng.randint(1, 5))
            try:
                ablate(path, runs=tmp_path / "runs", quiet=True)
            except PowerCutError:
                cuts += 1
        assert identities(folder).items() >= finished.items()
        finished = identities(folder)
        assert cuts < 12
    assert cuts >= 3
    assert lasting(read_rows(folder)) == lasting(read_rows(expected))
