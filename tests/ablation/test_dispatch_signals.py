"""A dispatcher that is stopped or killed: jobs save, workers are gone, the next call goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from . import work
from .test_dispatch import gone
from .work import WAIT, job, last_events, results, run

JOBS = [job("short"), job("long", do="train"), job("longer", do="train"), job("child", start="long"), job("last")]
Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Return a function that starts a dispatcher in a process; all are dead after the test."""
    begun: list[subprocess.Popen[str]] = []

    def start(jobs: list[dict], workers: int = 2, grace: float = WAIT) -> subprocess.Popen[str]:
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        command = [sys.executable, str(Path(work.__file__)), str(tmp_path), str(workers), str(grace), "local"]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate(timeout=WAIT)


def wait_for(*files: Path) -> None:
    """Wait until jobs have written something."""
    end = time.monotonic() + WAIT
    while not all(file.is_file() and file.stat().st_size for file in files):
        assert time.monotonic() < end
        time.sleep(0.01)


def ending(process: subprocess.Popen[str], folder: Path) -> tuple[int, dict[str, str], str]:
    """Wait for a dispatcher; return its exit code, the last event of each job, and its message."""
    _, message = process.communicate(timeout=WAIT)
    return process.returncode, {key: kind for key, (kind, _) in last_events(folder).items()}, message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_jobs_save_and_the_next_call_goes_on(begin: Begin, tmp_path: Path, number: int) -> None:
    process = begin(JOBS)
    wait_for(tmp_path / "long" / "steps", tmp_path / "longer" / "steps", tmp_path / "short" / "results.json")
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.send_signal(number)
    process.send_signal(number)
    code, last, message = ending(process, tmp_path)
    assert code == 128 + number
    assert f"stopped by signal {number} at 1 of 5 jobs" in message
    assert last == {"short": "finished", "long": "stopped", "longer": "stopped"}
    assert len(workers) == 2
    assert all(gone(pid, 0.1) for pid in workers)
    steps = int((tmp_path / "long" / "steps").read_text())
    assert (tmp_path / "long" / "saved").read_text() == "15"
    assert set(results(tmp_path)) == {"short"}
    rest = [{**entry, "config": {**entry["config"], "steps": steps + 5}} for entry in JOBS if entry["key"] != "short"]
    assert run(rest, tmp_path, workers=2)[0] == {}
    assert set(results(tmp_path)) == {entry["key"] for entry in JOBS}
    assert int((tmp_path / "long" / "steps").read_text()) == steps + 5


def test_ctrl_c_in_a_terminal_reaches_the_dispatcher_only(begin: Begin, tmp_path: Path) -> None:
    process = begin(JOBS[:2])
    wait_for(tmp_path / "long" / "steps")
    groups = {os.getpgid(child.pid) for child in psutil.Process(process.pid).children()}
    assert os.getpgid(process.pid) not in groups
    process.send_signal(signal.SIGINT)
    assert ending(process, tmp_path)[0] == 130
    assert (tmp_path / "long" / "saved").read_text() == "15"


def test_a_second_signal_kills_what_does_not_stop(begin: Begin, tmp_path: Path) -> None:
    process = begin([job("a", do="stubborn"), job("b")], workers=1)
    wait_for(tmp_path / "a" / "steps")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.8)
    assert process.poll() is None, "the second signal was an echo of the first one"
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    code, last, _ = ending(process, tmp_path)
    assert code == 143
    assert last == {"a": "stopped"}
    assert time.monotonic() - begun < WAIT / 2
    assert gone(int((tmp_path / "a" / "child").read_text()))


def test_what_does_not_stop_is_killed_after_a_while(begin: Begin, tmp_path: Path) -> None:
    process = begin([job("a", do="stubborn"), job("b", do="train")], workers=2, grace=0.5)
    wait_for(tmp_path / "a" / "steps", tmp_path / "b" / "steps")
    process.send_signal(signal.SIGTERM)
    code, last, _ = ending(process, tmp_path)
    assert code == 143
    assert last == {"a": "stopped", "b": "stopped"}
    assert (tmp_path / "b" / "saved").is_file()
    assert gone(int((tmp_path / "a" / "child").read_text()))


def test_a_dispatcher_that_is_killed_takes_its_workers_with_it(begin: Begin, tmp_path: Path) -> None:
    process = begin(JOBS, workers=3)
    wait_for(tmp_path / "long" / "steps", tmp_path / "longer" / "steps", tmp_path / "last" / "results.json")
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.kill()
    process.wait(WAIT)
    assert len(workers) == 3
    assert all(gone(pid) for pid in workers)
    assert (tmp_path / "long" / "saved").read_text() == "15"
    assert {"short", "last"} == set(results(tmp_path))


def test_a_worker_that_does_not_stop_for_a_dead_dispatcher_kills_itself(begin: Begin, tmp_path: Path) -> None:
    process = begin([job("a", do="stubborn")], workers=1)
    wait_for(tmp_path / "a" / "steps")
    (worker,) = [child.pid for child in psutil.Process(process.pid).children()]
    process.kill()
    process.wait(WAIT)
    assert not gone(worker, 1.0)
    assert gone(worker, WAIT)
    assert gone(int((tmp_path / "a" / "child").read_text()))


def test_a_job_that_kills_its_dispatcher(begin: Begin, tmp_path: Path) -> None:
    process = begin([job("a", do="kill_parent"), job("b")], workers=1)
    assert process.wait(WAIT) == -signal.SIGKILL
    wait_for(tmp_path / "a" / "saved")
    assert results(tmp_path) == {}
