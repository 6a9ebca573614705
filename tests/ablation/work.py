"""Small jobs for real workers. As a script it is a worker, or a parent that dispatches jobs and can be killed.

It must not import torch: processes are started by the dozen.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moekd.ablation.dispatch import run_jobs
from moekd.ablation.events import Event
from moekd.ablation.local_backend import LocalBackend
from moekd.ablation.ray_backend import RayBackend
from moekd.ablation.schedule import Schedule
from moekd.ablation.worker import serve
from moekd.errors import DataError, MoekdError, StoppedError

WORKER = [sys.executable, str(Path(__file__).resolve())]
#: Seconds after which a test gives up.
WAIT = 60.0


def job(key: str, start: str | None = None, do: str = "write", **options: Any) -> dict[str, Any]:
    """Return a job of setting s and seed 0 unless the options say otherwise."""
    return {"key": key, "start": start, "setting": "s", "seed": 0, "config": {"do": do}, **options}


def work(job: Mapping[str, Any], folder: Path) -> None:
    """Do what the job's config says; a job that gets to the end leaves results.json."""
    place = folder / job["key"]
    place.mkdir(parents=True, exist_ok=True)
    if job["start"] is not None and not (folder / job["start"] / "results.json").is_file():
        raise DataError(f"{job['start']} is not finished")
    DEEDS[job["config"]["do"]](job, place)
    results = {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}
    (place / "results.json").write_text(json.dumps(results))


def train(job: Mapping[str, Any], place: Path) -> None:
    """Count steps as a trainer does: a signal ends it after the step, with what it has on the disk."""
    heard: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: heard.append(number))
    file = place / "steps"
    done = int(file.read_text()) if file.exists() else 0
    for step in range(done + 1, job["config"].get("steps", 10**6) + 1):
        time.sleep(0.01)
        file.write_text(str(step))
        if heard:
            (place / "saved").write_text(str(heard[0]))
            raise StoppedError(heard[0], f"step {step}")


def stubborn(job: Mapping[str, Any], place: Path) -> None:
    """Ignore every request to stop, with a process of its own that does so too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "1000"])
    (place / "child").write_text(str(child.pid))
    (place / "steps").write_text("1")
    time.sleep(1000)


def babble(job: Mapping[str, Any], place: Path) -> None:
    """Print what looks like answers, and bytes that are no text; read what is not there to be read."""
    print('{"state": "failed", "text": "not an answer", "usable": false}')
    os.write(1, b"\xff\xfe\x00 no text \n" * 1000)
    os.write(2, b'{"ready": 1}\n')
    print("half a character: \ud83d")
    assert sys.stdin.read() == ""


def write(job: Mapping[str, Any], place: Path) -> None:
    """Nothing besides the result."""


def fail(job: Mapping[str, Any], place: Path) -> None:
    """Fail as expected."""
    raise MoekdError(job["config"].get("text", "as expected"))


def err(job: Mapping[str, Any], place: Path) -> None:
    """Fail as nobody expected."""
    raise RuntimeError("a bug: ünïcödé ✗ \ud83d")


def exit_3(job: Mapping[str, Any], place: Path) -> None:
    """End the process with last words."""
    print("last words", flush=True)
    os._exit(3)


def segfault(job: Mapping[str, Any], place: Path) -> None:
    """Do what a bug in a library in C does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def kill(job: Mapping[str, Any], place: Path) -> None:
    """Do what the kernel does when memory ends; a grandchild is left behind."""
    child = subprocess.Popen(["sleep", "1000"])
    (place / "child").write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def kill_parent(job: Mapping[str, Any], place: Path) -> None:
    """Kill the dispatcher, then work on."""
    os.kill(os.getppid(), signal.SIGKILL)
    train(job, place)


def close_all(job: Mapping[str, Any], place: Path) -> None:
    """Close descriptors that belong to others."""
    os.closerange(3, 256)
    time.sleep(0.2)


def leave(job: Mapping[str, Any], place: Path) -> None:
    """Call exit, as scripts do."""
    sys.exit(0)


def interrupt(job: Mapping[str, Any], place: Path) -> None:
    """Be stopped by somebody who is not the dispatcher."""
    raise StoppedError(signal.SIGTERM, "step 7")


_GOOD = (write, babble, train)
_BAD = (fail, err, leave, interrupt, exit_3, segfault, kill, close_all, stubborn, kill_parent)
DEEDS = {deed.__name__: deed for deed in (*_GOOD, *_BAD)}


def run(
    jobs: list[dict[str, Any]], folder: Path, workers: int = 1, grace: float = WAIT
) -> tuple[dict[str, str], list[Event]]:
    """Dispatch jobs to real workers; return the failures and all events."""
    events: list[Event] = []
    failures = run_jobs(Schedule(jobs), LocalBackend(folder, WORKER), workers, events.append, grace)
    return failures, events


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of the finished jobs by key."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/results.json")}


def last_events(folder: Path) -> dict[str, tuple[str, str]]:
    """Return kind and text of the last event of each job that `parent` has noted."""
    file = folder / "events.jsonl"
    # A line without its end is still being written.
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return {key: (kind, text) for kind, key, text in map(json.loads, lines)}


def parent(folder: Path, workers: int, grace: float, kind: str) -> None:
    """Dispatch the jobs of folder/jobs.json and note the events in a file; end as the command line does."""
    jobs = json.loads((folder / "jobs.json").read_text())

    def tell(event: Event) -> None:
        with open(folder / "events.jsonl", "a") as file:
            file.write(json.dumps([event.kind, event.key, event.text]) + "\n")

    try:
        backend = LocalBackend(folder, WORKER) if kind == "local" else RayBackend(folder, workers, work)
        run_jobs(Schedule(jobs), backend, workers, tell, grace)
    except MoekdError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(work, int(sys.argv[1]), grace=2.0)
    else:
        parent(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
