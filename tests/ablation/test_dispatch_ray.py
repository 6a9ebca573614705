"""The same jobs as tasks of a real Ray cluster on this machine.

The dispatcher runs in a process of its own: Ray needs sockets of this machine, which tests may not open.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from moekd.ablation.ray_backend import gpu_share, run_task

from . import work
from .test_dispatch_signals import wait_for
from .work import WAIT, job, last_events, results

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: moekd[ray]")
JOBS = [
    job("shared"),
    job("arm", start="shared"),
    job("fails", do="fail", config={"do": "fail", "text": "übel ✗"}),
    job("needs", start="fails"),
    job("bug", do="err"),
    job("exits", do="exit_3"),
    job("killed", do="kill"),
    job("prints", do="babble"),
    job("long", do="train"),
]


@dataclass
class Ended:
    """A dispatcher that was stopped while `long` was running."""

    folder: Path
    code: int
    message: str
    last: dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """Run the jobs on two CPUs until only the endless one is left, then stop it."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "jobs.json").write_text(json.dumps(JOBS))
    # Paths of sockets have to be short.
    scratch = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_"))}
    command = [sys.executable, work.__file__, str(folder), "2", "60", "ray"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment, "RAY_TMPDIR": scratch}
    )
    try:
        end = time.monotonic() + WAIT
        while sum(kind != "started" for kind, _ in last_events(folder).values()) < len(JOBS) - 1:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        wait_for(folder / "long" / "steps")
        process.terminate()
        _, message = process.communicate(timeout=WAIT)
        yield Ended(folder, process.returncode, message, last_events(folder))
    finally:
        process.kill()
        process.communicate(timeout=WAIT)
        shutil.rmtree(scratch, ignore_errors=True)


@needs_ray
@pytest.mark.ray
def test_tasks_that_fail_or_die_take_nobody_with_them(ended: Ended) -> None:
    kinds = {key: kind for key, (kind, _) in ended.last.items()}
    bad = {"fails", "needs", "bug", "exits", "killed"}
    assert kinds == {entry["key"]: "failed" if entry["key"] in bad else "finished" for entry in JOBS} | {
        "long": "stopped"
    }
    assert set(results(ended.folder)) == {"shared", "arm", "prints"}
    texts = {key: text for key, (_, text) in ended.last.items()}
    assert texts["fails"] == "übel ✗"
    assert texts["needs"] == "needs fails, which failed"
    assert texts["bug"].endswith("RuntimeError: a bug: ünïcödé ✗ \\ud83d\n")
    assert texts["exits"] == "the process died without an answer (out of memory?)\nlast words"
    assert texts["killed"] == "the process died without an answer (out of memory?)"
    assert {result["threads"] for result in results(ended.folder).values()} == {"1"}
    assert b"no text" in (ended.folder / "logs" / "prints.log").read_bytes()


@needs_ray
@pytest.mark.ray
def test_a_signal_lets_tasks_save(ended: Ended) -> None:
    assert ended.code == 143
    assert "stopped by signal 15 at 3 of 9 jobs" in ended.message
    assert (ended.folder / "long" / "saved").is_file()
    assert ended.last["long"][1].startswith("stopped by signal 2 at step ")


def test_a_machine_that_does_not_share_the_folder_says_so(tmp_path: Path) -> None:
    answer = run_task(work.work, job("a"), str(tmp_path))
    assert answer.state == "failed"
    assert "all machines of the cluster have to share it under the same path" in answer.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gpus", "workers", "share"),
    [(0.0, 4, 0.0), (0.5, 4, 0.0), (1.0, 4, 0.25), (2.0, 3, 0.5), (8.0, 8, 1.0), (8.0, 3, 1.0)],
)
def test_the_share_of_a_gpu_lets_all_workers_run(gpus: float, workers: int, share: float) -> None:
    assert gpu_share(gpus, workers) == share
    assert not share or int(gpus) * int(1 / share) >= workers
