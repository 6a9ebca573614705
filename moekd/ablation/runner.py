"""`moekd ablate`, as a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..progress import Progressbar
from .dispatch import dispatch
from .events import Event
from .plan import Plan, make_plan
from .rows import note_failures, write_plan
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
    """

    folder: Path
    failures: Mapping[str, str]
    left: int


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
        StoppedError: a signal ended it; the same call goes on.
    """
    ablation = config if isinstance(config, Ablation) else load_ablation(config, overrides, seeds)
    folder = Path(runs) / ablation.name
    plan = make_plan(ablation)
    write_plan(ablation, plan, command, folder)
    mine = plan.jobs if shard is None else shard_of(plan.jobs, *shard)
    todo = [job for job in needed(mine, folder) if not finished(job, folder)]
    with Progressbar(enabled=not quiet) as progress:
        progress.start(ablation.name, len(todo))
        failures = dispatch(todo, folder, jobs, backend, lambda event: _show(progress, event))
        progress.finish()
    note_failures(failures, folder)
    return Outcome(folder, failures, len(plan.jobs) - len(mine))


def needed(jobs: Sequence[Mapping[str, Any]], folder: Path) -> list[Mapping[str, Any]]:
    """Return the jobs without the shared stages that no unfinished job starts from."""
    wanted: set[str] = set()
    for job in reversed(jobs):
        if not finished(job, folder) and (job["arm"] is not None or job["key"] in wanted):
            wanted |= {job["key"], job["start"]}
    return [job for job in jobs if job["key"] in wanted or finished(job, folder)]


def _show(progress: Progressbar, event: Event) -> None:
    if event.kind == "started":
        return
    progress.advance()
    reason = f": {event.text.splitlines()[0]}" if event.text else ""
    progress.say(f"{event.key}: {event.kind} after {event.seconds:.0f} s{reason}")


__all__ = ["Outcome", "Plan", "ablate", "needed"]
