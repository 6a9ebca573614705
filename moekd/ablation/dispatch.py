"""Runs the jobs of an ablation, several at a time, each after the one it starts from; a failure stays where it is."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

from ..errors import ConfigError, StoppedError, did_you_mean
from .events import GRACE, Backend, Event, Job, Outcome
from .local_backend import LocalBackend
from .schedule import Schedule

#: Seconds between two looks at signals and at processes that died without a word.
POLL = 0.2
#: Seconds within which a second signal is the first one again: launchers pass on what the terminal sent to all.
ECHO = 1.0
BACKENDS = ("local", "ray")


def dispatch(
    jobs: Sequence[Job],
    folder: Path,
    workers: int = 1,
    backend: Literal["local", "ray"] = "local",
    on_event: Callable[[Event], None] | None = None,
) -> dict[str, str]:
    """Run jobs that are not finished yet; each writes `folder/<key>/`, and what it prints `folder/logs/<key>.log`.

    A job starts when the job that its `start` names is finished; a start job that is not in the list counts as
    finished. A job that fails takes the jobs with it that need it, nothing else.

    SIGINT and SIGTERM let the running jobs save and end; a second signal, or a minute, ends them at once.

    Args:
        jobs: in the order in which they are wanted.
        folder: of the ablation.
        workers: jobs at a time, each on one thread.
        backend: "local": processes of this machine; "ray": tasks of a Ray cluster (see `ray_backend`).
        on_event: is told when a job starts or ends; an error that it raises ends everything.

    Returns:
        Why each failed job failed, by its key: the message of an expected failure; of a crash the exit code or signal
        and the end of what was printed.

    Raises:
        ConfigError: fewer than one worker, an unknown backend, keys that clash, jobs that start in a circle.
        MissingDependencyError: backend "ray" without Ray.
        MoekdError: the worker processes can't start at all.
        StoppedError: a signal stopped the jobs.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"jobs need at least 1 worker, found {workers!r}")
    if backend not in BACKENDS:
        hint = did_you_mean(str(backend), BACKENDS) or f"; known: {', '.join(BACKENDS)}"
        raise ConfigError(f"unknown backend {backend!r}{hint}")
    schedule = Schedule(jobs)
    if schedule.over:
        return {}
    workers = min(workers, len(schedule.jobs))
    if backend == "local":
        return run_jobs(schedule, LocalBackend(folder), workers, on_event)
    from .ray_backend import RayBackend

    return run_jobs(schedule, RayBackend(folder, workers), workers, on_event)


def run_jobs(
    schedule: Schedule,
    backend: Backend,
    workers: int,
    on_event: Callable[[Event], None] | None = None,
    grace: float = GRACE,
) -> dict[str, str]:
    """Run a schedule on a backend, which is closed in the end; see `dispatch`.

    Args:
        grace: seconds that running jobs have to save after a signal.
    """
    try:
        with _Stop() as stop:
            return _Dispatcher(schedule, backend, workers, on_event or _ignore).run(stop, grace)
    except BaseException:
        backend.kill()
        raise
    finally:
        backend.close()


class _Dispatcher:
    """Puts jobs into slots and keeps account of what becomes of them."""

    def __init__(self, schedule: Schedule, backend: Backend, workers: int, tell: Callable[[Event], None]) -> None:
        self.schedule, self.backend, self.tell = schedule, backend, tell
        self.idle: dict[int, Job | None] = dict.fromkeys(range(workers))
        self.busy: dict[int, Job] = {}
        self.since: dict[str, float] = {}

    def run(self, stop: _Stop, grace: float) -> dict[str, str]:
        """Run until every job has ended or a signal comes."""
        while not self.schedule.over:
            if stop.signal:
                self._wind_down(stop, grace)
            self._fill_slots()
            for outcome in self.backend.wait(POLL):
                self._account(outcome)
        return self.schedule.failures

    def _fill_slots(self) -> None:
        while (found := self.schedule.best(self.idle)) is not None:
            slot, key = found
            job = self.schedule.take(key)
            self.since[key] = time.monotonic()
            self.tell(Event("started", key))
            self.backend.start(slot, job)
            del self.idle[slot]
            self.busy[slot] = job

    def _account(self, outcome: Outcome, stopping: bool = False) -> None:
        """Note how a job ended; one that a signal interrupted is neither finished nor failed."""
        job = self.busy.pop(outcome.slot)
        self.idle[outcome.slot] = None if outcome.state == "lost" else job
        key = job["key"]
        seconds = time.monotonic() - self.since[key]
        if outcome.state == "done":
            self.schedule.finish(key)
            self.tell(Event("finished", key, seconds))
        elif stopping and outcome.state != "failed":
            self.tell(Event("stopped", key, seconds, outcome.text))
        else:
            lost = self.schedule.fail(key, outcome.text)
            self.tell(Event("failed", key, seconds, outcome.text))
            for needs in lost:
                self.tell(Event("failed", needs, 0.0, self.schedule.failures[needs]))

    def _wind_down(self, stop: _Stop, grace: float) -> None:
        """Let the running jobs save, for a while or until the next signal, and raise."""
        end = time.monotonic() + grace
        self.backend.stop()
        while self.busy and not stop.urgent and time.monotonic() < end:
            for outcome in self.backend.wait(POLL):
                self._account(outcome, stopping=True)
        self.backend.kill()
        for slot in list(self.busy):
            self._account(Outcome(slot, "lost", "killed before it could save"), stopping=True)
        raise StoppedError(stop.signal, f"{len(self.schedule.finished)} of {len(self.schedule.jobs)} jobs")


class _Stop:
    """Notes the first SIGINT or SIGTERM, and whether a second one came; outside of the main thread it hears nothing."""

    def __init__(self) -> None:
        self.signal, self.urgent = 0, False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > ECHO:
            self.urgent = True


def _ignore(event: Event) -> None:
    """Nobody wants to know."""
