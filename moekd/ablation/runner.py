"""`moekd ablate`, as a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, MissingDependencyError, StoppedError, did_you_mean
from ..progress import Progressbar
from .dispatch import BACKENDS, dispatch
from .events import Event
from .plan import Plan, make_plan
from .rows import forget_failures, note_failure, write_plan
from .run import finished
from .shard import shard as shard_of
from .spec import Ablation, load_ablation


@dataclass(frozen=True)
class Outcome:
    """What a call of `ablate` left behind.

    Attributes:
        folder: of the ablation; each run has a folder in it.
        failures: reason by run.
        left: runs that this call did not do, since they belong to other shards.
        names: what the runs of this call are called for people.
        dependent: those of the failures that could not start, since the run that they start from failed.
    """

    folder: Path
    failures: Mapping[str, str]
    left: int
    names: Mapping[str, str] = field(default_factory=dict)
    dependent: frozenset[str] = frozenset()


def ablate(
    config: str | Path | Ablation,
    overrides: Sequence[str] = (),
    *,
    seeds: int | None = None,
    jobs: int = 1,
    shard: tuple[int, int] | None = None,
    backend: Literal["local", "ray"] = "local",
    runs: Path | str = "runs",
    command: str = "",
    quiet: bool = False,
) -> Outcome:
    """Run what is left of an ablation; a failed arm is reported and does not stop the others.

    Args:
        config: an ablation file, the name of a shipped ablation, or an ablation.
        overrides: "key=value" changes of every arm's config.
        seeds: number of seeds instead of the file's.
        jobs: runs at a time; each uses one thread.
        shard: (i, n): only the i-th of n parts, for n machines; they write to the same folder, or their folders are put
            together afterwards.
        backend: `local` processes, or `ray` (the extra `moekd[ray]`).
        runs: folder of all runs.
        command: how it was called, for the report.
        quiet: no progress bar.

    Raises:
        ConfigError: every mistake of every arm, before anything runs.
        MissingDependencyError: backend "ray" without Ray.
        DataError: the folder can't be used.
        StoppedError: a signal ended it; the same call goes on.
    """
    check_backend(backend)
    if isinstance(config, Ablation) and (overrides or seeds is not None):
        raise ConfigError("overrides and seeds belong to load_ablation, which made the ablation")
    ablation = config if isinstance(config, Ablation) else load_ablation(config, overrides, seeds)
    folder = Path(runs) / ablation.name
    plan = make_plan(ablation)
    mine = plan.jobs if shard is None else shard_of(plan.jobs, *shard)
    write_plan(ablation, plan, command or f"moekd ablate {ablation.name}", folder)
    wanted = needed(mine, folder)
    todo = [job for job in wanted if not finished(job, folder)]
    forget_failures(todo, folder)
    with Progressbar(enabled=not quiet) as progress:
        teller = _Teller(progress, todo, folder)
        progress.say(f"{ablation.name}: {len(todo)} runs to do, {len(wanted) - len(todo)} finished before, in {folder}")
        progress.start(ablation.name, len(todo))
        try:
            failures = dispatch(todo, folder, jobs, backend, teller)
        except StoppedError as error:
            where, how = f"{teller.finished} of {len(todo)} runs", "the same command: finished runs stay as they are"
            raise StoppedError(error.exit_code - 128, where, how) from None
        progress.finish()
    dependent = frozenset(job["key"] for job in todo if job["key"] in failures and job["start"] in failures)
    return Outcome(folder, failures, len(plan.jobs) - len(mine), teller.names, dependent)


def check_backend(backend: str) -> None:
    """Make sure that runs can be sent there.

    Raises:
        ConfigError: there is no such backend.
        MissingDependencyError: Ray is not installed.
    """
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS) or f"; known: {', '.join(BACKENDS)}"
        raise ConfigError(f"unknown backend {backend!r}{hint}")
    if backend == "ray" and find_spec("ray") is None:
        raise MissingDependencyError("ray", "ray", "running jobs on a Ray cluster")


def needed(jobs: Sequence[Mapping[str, Any]], folder: Path) -> list[Mapping[str, Any]]:
    """Return the jobs without the shared stages that no unfinished job starts from."""
    wanted: set[str] = set()
    for job in reversed(jobs):
        if not finished(job, folder) and (job["arm"] is not None or job["key"] in wanted):
            wanted |= {job["key"], job["start"]}
    return [job for job in jobs if job["key"] in wanted or finished(job, folder)]


class _Teller:
    """Shows what becomes of the runs, and keeps the reasons of those that fail."""

    def __init__(self, progress: Progressbar, jobs: Sequence[Mapping[str, Any]], folder: Path) -> None:
        self.progress, self.folder = progress, folder
        self.names = {job["key"]: run_name(job) for job in jobs}
        self.running: dict[str, None] = {}
        self.finished = 0

    def __call__(self, event: Event) -> None:
        if event.kind == "started":
            self.running[event.key] = None
        else:
            self.running.pop(event.key, None)
            self._tell_end(event)
        self.progress.advance(0, ", ".join(self.names[key] for key in self.running))

    def _tell_end(self, event: Event) -> None:
        name = self.names[event.key]
        if event.kind == "failed":
            note_failure(event.key, event.text, self.folder)
        if event.kind == "finished":
            self.finished += 1
        if event.kind != "stopped":
            self.progress.advance()
        reason = f": {event.text.splitlines()[0]}" if event.kind == "failed" and event.text else ""
        self.progress.say(f"{name}: {event.kind} after {event.seconds:.0f} s{reason}")


def run_name(job: Mapping[str, Any]) -> str:
    """Return what a run is called for people: "few labels, top_k, seed 3"."""
    title = job["arm"] if job["arm"] is not None else f"shared stages {job['title']}"
    return ", ".join(part for part in (job["setting"], title, f"seed {job['seed']}") if part)


__all__ = ["Outcome", "Plan", "ablate", "check_backend", "needed", "run_name"]
