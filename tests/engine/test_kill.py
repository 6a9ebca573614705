"""Real processes that are killed, or asked to stop, and go on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moekd.checkpoint import find_latest, load_checkpoint
from moekd.tracking import RunFolder

from .tiny import Finished, full, recipe_of, same_weights, start, train, weights_of

#: Long enough that a kill between the first and the last step is sure to hit.
LONG = full(trainer={**full()["trainer"], "keep": 2, "log_every": 1})
for _stage in LONG["stages"]:
    _stage["epochs"] = 8
WAIT = 120


@pytest.fixture(scope="module")
def expected(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return the long run, never disturbed."""
    return train(LONG, Path(tmp_path_factory.mktemp("expected")))


@pytest.fixture
def begin(tmp_path: Path) -> Iterator:
    """Return a function that starts the run, or goes on with it, in a process; all are dead after the test."""
    (tmp_path / "config.json").write_text(json.dumps(LONG))
    begun: list[subprocess.Popen[str]] = []

    def process() -> subprocess.Popen[str]:
        begun.append(start(["train-tiny", tmp_path / "config.json", tmp_path]))
        return begun[-1]

    yield process
    for process_ in begun:
        process_.kill()
        process_.communicate(timeout=WAIT)


def lines(metrics: Path) -> int:
    """Return the number of records so far."""
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for(metrics: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has written some records."""
    end = time.monotonic() + WAIT
    while lines(metrics) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def assert_ends_as(expected: Finished, folder: Path) -> None:
    """Check the weights of the last checkpoint and all records against a run that was never disturbed."""
    newest, skipped = find_latest(folder / "checkpoints")
    assert newest is not None
    assert skipped == []
    program = recipe_of(LONG).build()
    from moekd.run_state import load_modules

    load_modules(program, load_checkpoint(newest)[0]["models"])
    assert same_weights(weights_of(program), expected.weights()) == []
    run = Finished(program, RunFolder(folder.parent, folder.name, resume=True), expected.trainer, {})
    assert run.records() == expected.records()
    assert not [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]


def test_kill_at_random_moments(expected: Finished, begin, tmp_path: Path) -> None:
    """R2: `kill -9`, three times; twenty times in `moekd benchmark reliability`."""
    rng = random.Random(11)
    folder = tmp_path / "run"
    for fraction in (0.15, 0.4, 0.7):
        process = begin()
        wait_for(folder / "metrics.jsonl", int(fraction * len(expected.records())) + rng.randint(0, 6), process)
        time.sleep(rng.random() * 0.05)
        process.kill()
        assert process.wait(WAIT) == -signal.SIGKILL
    process = begin()
    _, messages = process.communicate(timeout=WAIT)
    assert process.returncode == 0, messages
    assert "resumed from" in messages
    assert_ends_as(expected, folder)


def test_a_signal_lets_the_step_end_and_saves(begin, tmp_path: Path) -> None:
    """R5: the exit code is 128 and the signal."""
    folder, number = tmp_path / "run", signal.SIGINT
    process = begin()
    wait_for(folder / "metrics.jsonl", 10, process)
    process.send_signal(number)
    _, messages = process.communicate(timeout=WAIT)
    assert process.returncode == 128 + number, messages
    assert "Traceback" not in messages
    assert f"stopped by signal {number} at main, " in messages
    assert "continue with the same command and --resume auto" in messages
    newest, _ = find_latest(folder / "checkpoints")
    assert newest is not None
    assert load_checkpoint(newest)[1]["metrics_position"] == (folder / "metrics.jsonl").stat().st_size
