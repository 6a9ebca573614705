"""The order of jobs that build on each other: which are ready, which fits a worker best, which can't run any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..atomic import safe_name
from ..errors import ConfigError
from .events import Job


class Schedule:
    """A forest of jobs: `start` names the job that has to be finished first.

    A start job that is not in the list counts as finished.

    Args:
        jobs: in the order in which they are wanted.

    Raises:
        ConfigError: a key twice, a key that can't be a folder's name, jobs that start from each other in a circle.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs: dict[str, Job] = {}
        for job in jobs:
            key = safe_name(job["key"], "key of a job")
            if key in self.jobs:
                raise ConfigError(f"two jobs have the key '{key}'; every job needs a folder of its own")
            self.jobs[key] = job
        self._children: dict[str, list[str]] = {key: [] for key in self.jobs}
        roots: list[str] = []
        for key in self.jobs:
            start = self.start_of(key)
            (roots if start is None else self._children[start]).append(key)
        self._place = {key: place for place, key in enumerate(self.jobs)}
        self._waiting = self._count_waiting(roots)
        self._ready = dict.fromkeys(roots)
        self._running: dict[str, None] = {}
        self.finished: list[str] = []
        self.failures: dict[str, str] = {}

    @property
    def over(self) -> bool:
        """Every job is finished or failed."""
        return not self._ready and not self._running

    def start_of(self, key: str) -> str | None:
        """Return the job of the list that has to be finished before `key`, if any."""
        start = self.jobs[key].get("start")
        return start if start in self.jobs else None

    def best(self, idle: Mapping[int, Job | None]) -> tuple[int, str] | None:
        """Return the slot and the key of the job that should start next, or None if no job is ready.

        A job goes to the worker whose last job is its nearest relative, whose memory may still hold what both need.
        Among equals the job that most others wait for comes first, then the one that stands first in the list.

        Args:
            idle: slots without a job, with the last job of their worker or None if there is no worker yet.
        """
        pairs = (
            (_distance(self.jobs[key], last), -self._waiting[key], self._place[key], slot, key)
            for slot, last in idle.items()
            for key in self._ready
        )
        found = min(pairs, default=None)
        return None if found is None else (found[3], found[4])

    def take(self, key: str) -> Job:
        """Mark a ready job as running and return it."""
        del self._ready[key]
        self._running[key] = None
        return self.jobs[key]

    def finish(self, key: str) -> None:
        """Mark a running job as finished; what starts from it is ready now."""
        del self._running[key]
        self.finished.append(key)
        self._ready.update(dict.fromkeys(self._children[key]))

    def fail(self, key: str, text: str) -> list[str]:
        """Mark a running job as failed and with it all jobs that need it; return the keys of these, nearest first."""
        del self._running[key]
        self.failures[key] = text
        family = [key]
        for parent in family:
            self.failures.update(dict.fromkeys(self._children[parent], f"needs {parent}, which failed"))
            family += self._children[parent]
        return family[1:]

    def _count_waiting(self, roots: Sequence[str]) -> dict[str, int]:
        """Return how many jobs wait for each job, directly or not."""
        order = list(roots)
        for key in order:
            order += self._children[key]
        if len(order) < len(self.jobs):
            circle = sorted(set(self.jobs) - set(order), key=self._place.__getitem__)
            raise ConfigError(f"jobs can't start from each other in a circle: {', '.join(circle[:5])}")
        waiting = dict.fromkeys(order, 0)
        for key in reversed(order):
            start = self.start_of(key)
            if start is not None:
                waiting[start] += 1 + waiting[key]
        return waiting


def _distance(job: Job, last: Job | None) -> int:
    """Return how far a job is from what a worker has in memory, 0 for a sibling or child of its last job."""
    if last is None:
        return 3
    if job.get("start") is not None and job["start"] in (last["key"], last.get("start")):
        return 0
    alike = all(job.get(name) == last.get(name) for name in ("setting", "seed"))
    return 1 if alike else 2
