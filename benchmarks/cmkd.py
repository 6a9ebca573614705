"""Run the cross-modal benchmark: for each cell the values of the tuning grid with one seed, then all methods over the
seeds.

Both are ablations: teachers and all stages that methods share are trained once a seed, a finished run is never run
again, and an interrupted one goes on from its last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..ablation import Ablation, Arm, ablate, make_plan
from ..ablation.rows import read_plan
from ..ablation.run import finished
from ..atomic import write_json
from ..config import apply_overrides
from ..tracking import read_jsonl
from .cmkd_config import CellConfig, SuiteConfig
from .cmkd_suite import ALONE, Choice, Method, base_of, changes_of, chosen, left_out, methods_of

CHOICES = "choices.json"


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        suite: what there is.
        cells: names; () for the suite's default ones.
        methods: names; () for all.
        seeds: number of seeds; None for the suite's.
        overrides: "key=value" changes of every run's config.
        tune: choose weights and teachers on the tuning seed; else every weight is the published one and the teacher the
            one that sees most.
    """

    suite: SuiteConfig
    cells: Sequence[str] = ()
    methods: Sequence[str] = ()
    seeds: int | None = None
    overrides: Sequence[str] = ()
    tune: bool = True

    @property
    def names(self) -> list[str]:
        """Names of the cells."""
        return chosen(self.cells, list(self.suite.data), self.suite.default, "cell")

    def left_out(self) -> dict[str, list[str]]:
        """Return the cells in which a method that is asked for has no meaning, by "method: reason"."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            for method, reason in left_out(self.suite, self.suite.data[name], self.methods).items():
                found.setdefault(f"{method}: {reason}", []).append(name)
        return found

    def methods_in(self, cell: CellConfig) -> list[Method]:
        """Return the methods of a cell."""
        return methods_of(self.suite, cell, self.methods)


@dataclass
class Outcome:
    """Reasons by run, of those that failed, and folders of the cells that ran."""

    failures: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)


def run_cmkd(request: Request, runs: Path, jobs: int = 1, command: str = "", quiet: bool = False) -> Outcome:
    """Run what is left; a failed method is reported and does not stop the others.

    Args:
        request: what is asked for.
        runs: folder of all runs; each cell has a folder `NAME` in it, and its tuning one `NAME-tuning`.
        jobs: runs at a time; each uses one thread.
        command: how it was called, for the report.
        quiet: no progress bar.

    Raises:
        ConfigError: mistakes of a config, before anything of that cell runs.
        StoppedError: a signal ended it; the same call goes on.
    """
    outcome = Outcome()
    for name in request.names:
        cell = request.suite.data[name]
        options: dict[str, Any] = {"jobs": jobs, "runs": runs, "command": command, "quiet": quiet}
        if request.tune:
            tuning = tuning_of(request, name, cell)
            if tuning.arms:
                outcome.failures |= ablate(tuning, **options).failures
        choices = choose(request, name, cell, runs)
        outcome.failures |= ablate(ablation_of(request, name, cell, choices), **options).failures
        outcome.folders[name] = runs / name
        write_json(
            runs / name / CHOICES, {title: {"weight": c.weight, "teacher": c.teacher} for title, c in choices.items()}
        )
    return outcome


def count_runs(request: Request, runs: Path) -> list[dict[str, Any]]:
    """Return for every cell how many runs there are and how many are finished, without running anything."""
    found = []
    for name in request.names:
        cell = request.suite.data[name]
        parts = [tuning_of(request, name, cell)] if request.tune else []
        choices = choose(request, name, cell, runs)
        parts.append(ablation_of(request, name, cell, choices))
        for part in parts:
            if not part.arms:
                continue
            plan = make_plan(part)
            done = sum(finished(job, runs / part.name) for job in plan.jobs)
            row = {"cell": part.name, "methods": len(part.arms), "runs": len(plan.jobs), "finished": done}
            found.append(row | {"inapplicable": len(plan.inapplicable)})
    return found


def ablation_of(request: Request, name: str, cell: CellConfig, choices: Mapping[str, Choice]) -> Ablation:
    """Return the ablation of a cell: every method with its chosen value of the grid, over the seeds."""
    suite = request.suite
    arms = [
        Arm(method.title, changes_of(suite, cell, method, choices[method.title]), optional=method.title != ALONE)
        for method in request.methods_in(cell)
    ]
    return _ablation(request, name, cell, arms, tuple(range(request.seeds or suite.seeds)), ALONE)


def tuning_of(request: Request, name: str, cell: CellConfig) -> Ablation:
    """Return the ablation that tries the values of the grid, with the tuning seed."""
    arms = [
        Arm(f"{method.title}, {choice.label}", changes_of(request.suite, cell, method, choice), optional=True)
        for method in request.methods_in(cell)
        if len(method.choices) > 1
        for choice in method.choices
    ]
    return _ablation(request, f"{name}-tuning", cell, arms, (request.suite.tuning.seed,), None)


def _ablation(
    request: Request, name: str, cell: CellConfig, arms: Sequence[Arm], seeds: tuple[int, ...], baseline: str | None
) -> Ablation:
    return Ablation(
        name=name,
        title=f"{request.suite.title}: {cell.title}",
        base=apply_overrides(base_of(request.suite, cell), request.overrides),
        source=f"cmkd: {name}",
        settings={"": {}},
        arms=tuple(arms),
        every=None,
        without=(),
        seeds=seeds,
        baseline=baseline,
        metric=cell.metric or request.suite.metric,
    )


def choose(request: Request, name: str, cell: CellConfig, runs: Path) -> dict[str, Choice]:
    """Return the value of the grid with the best validation metric for each method, the first one among equals.

    Methods without tuning runs keep the published weight, and the teacher that reads most of the modalities.
    """
    measured = validation_of(runs / f"{name}-tuning", cell.metric or request.suite.metric) if request.tune else {}
    found: dict[str, Choice] = {}
    for method in sorted(request.methods_in(cell), key=lambda method: method.follows is not None):
        if method.follows is not None:
            found[method.title] = Choice(found[method.follows].weight)
            continue
        scores = {c: measured.get(f"{method.title}, {c.label}", -math.inf) for c in method.choices}
        best = max(scores, key=scores.__getitem__)
        found[method.title] = best if scores[best] > -math.inf else _untuned(method, cell)
    return found


def _untuned(method: Method, cell: CellConfig) -> Choice:
    if method.form != "alone":
        return Choice()
    teachers: Mapping[str, Any] = cell.config["teachers"]
    return Choice(teacher=max(teachers, key=lambda teacher: len(teachers[teacher]["inputs"])))


def validation_of(folder: Path, metric: str) -> dict[str, float]:
    """Return the best validation metric of the last stage of every finished run of an ablation, by arm."""
    if not folder.is_dir():
        return {}
    found = {}
    for job in read_plan(folder)["jobs"]:
        if job["arm"] is not None and finished(job, folder):
            found[job["arm"]] = validation_metric(folder / job["key"], metric)
    return found


def validation_metric(run: Path, metric: str) -> float:
    """Return the best value of a validation metric in the stage `distill` of a run; -inf without one."""
    values = [
        record["metrics"][metric]
        for record in read_jsonl(run / "metrics.jsonl")
        if record["type"] == "validation" and record["stage"] == "distill" and metric in record["metrics"]
    ]
    return max((value for value in values if not math.isnan(value)), default=-math.inf)
