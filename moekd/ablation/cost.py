"""What an ablation is going to cost, from a few timed steps of every stage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ..config import parse_recipe
from ..data import Episodes, Split
from ..data.subset import Rows
from ..errors import MoekdError
from ..evaluation.evaluate import to_device
from ..program import Program
from ..progress import Progressbar
from ..stages import RunData, Stage, StageContext, TrainStage
from ..trainer import make_accelerator
from .plan import Plan, make_plan
from .run import build_program, finished
from .spec import Ablation

#: Timed batches of a stage.
TIMED = 3


def print_plan(ablation: Ablation, folder: Path, jobs: int = 1) -> None:
    """Print the arms, the stages that they share, and how long the runs are expected to take; nothing is written.

    Args:
        ablation: what is planned.
        folder: of its runs; those that are finished there are counted.
        jobs: runs at a time.
    """
    plan = make_plan(ablation)
    first = [job for job in plan.jobs if job["seed"] == ablation.seeds[0]]
    by_key = {job["key"]: job for job in first}
    seconds = {job["key"]: expected_seconds(job, _own_stages(job, by_key)) for job in first}
    console = Console()
    console.print(_table(ablation, plan, first, seconds))
    for (setting, arm), reason in plan.inapplicable.items():
        name = ", ".join(part for part in (setting, arm) if part)
        console.print(f"not applicable: {name}: {reason}", markup=False, highlight=False)
    seeds = len(ablation.seeds)
    whole = sum(seconds.values()) * seeds
    alone = sum(_from_the_beginning(job, by_key, seconds) for job in first if job["arm"] is not None) * seeds
    done = sum(finished(job, folder) for job in plan.jobs)
    console.print(
        f"{len(plan.jobs)} runs ({done} finished in {folder}), all of them about {_span(whole)} of one process, "
        f"{_span(whole / jobs)} with --jobs {jobs}; without shared stages about {_span(alone)}",
        markup=False,
        highlight=False,
    )


def _table(ablation: Ablation, plan: Plan, first: list[dict[str, Any]], seconds: Mapping[str, float]) -> Table:
    by_key = {job["key"]: job for job in first}
    seeds = f"{len(ablation.seeds)} seed{'s' if len(ablation.seeds) > 1 else ''}"
    table = Table(title=f"{ablation.title}: {len(plan.arms)} arms, {seeds}", title_justify="left")
    for column in ("setting", "arm", "starts from", "own stages", "steps", "teacher forwards a step", "about, s"):
        table.add_column(column, overflow="fold")
    for job in first:
        own, shared = _own_stages(job, by_key), job["arm"] is None
        rows = [row for row in plan.steps.get((job["setting"], str(job["arm"])), []) if row["stage"] in own]
        forwards = "/".join(str(row["teacher_forwards"]) for row in rows)
        steps = str(sum(row["steps"] for row in rows)) if rows else ""
        start = "" if job["start"] is None else f"({by_key[job['start']]['title']})"
        name = f"({job['title']})" if shared else str(job["arm"])
        about = "unknown" if math.isnan(seconds[job["key"]]) else f"{seconds[job['key']]:.0f}"
        table.add_row("" if shared else job["setting"], name, start, ", ".join(own), steps, forwards, about)
    return table


def expected_seconds(job: Mapping[str, Any], stages: list[str]) -> float:
    """Return about how many seconds the given stages of a job take on one thread; NaN where it can't be told."""
    program = build_program(parse_recipe(job["config"], job["key"]), job["key"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return sum(_stage_seconds(program, stage) for stage in program.phases[0].stages if stage.name in stages)
    except MoekdError:  # few rows may not be enough for a gate that measures the teachers first
        return math.nan
    finally:
        torch.set_num_threads(threads)


def _stage_seconds(program: Program, stage: Stage) -> float:
    """Run the stage's own loop for a few batches of a few rows, and its validation."""
    if not isinstance(stage, TrainStage):
        return math.nan
    if stage.idle:
        return 0.0
    settings, data = stage.settings, program.data
    rows = TIMED * data.batch_size
    few = replace(data, splits={name: _first(split, rows) for name, split in data.splits.items()})
    loop = stage.make_loop(_context(program, few), None)
    try:
        batches = [
            to_device(batch, loop.context.device) for batch in loop.context.train_loader("", 0, 0, settings.split)
        ]
        step = min(_seconds(lambda batch=batch: loop.run_batch(batch)) for batch in batches)  # type: ignore[misc]
        validation = _seconds(loop.validate)
    finally:
        loop.close()
    count = data.batches(settings.split)
    batches_in_all = settings.steps * settings.accumulate if settings.steps else count * (settings.epochs or 1)
    monitored = settings.monitor.split if settings.monitor else "val"
    if monitored in data.splits:
        validation *= max(1.0, len(data.split(monitored)) / rows)
    return batches_in_all * step + math.ceil(batches_in_all / count) * validation


def _first(split: Split, rows: int) -> Split:
    if isinstance(split.batching, Episodes):  # a batch is an episode then, whatever the batch size
        part = Rows(split, np.arange(len(split)), split.name)
        part.batching = split.batching.first(TIMED)
        return part
    return Rows(split, np.arange(min(rows, len(split))), split.name)


def _context(program: Program, data: RunData) -> StageContext:
    """Return what a stage needs to run without leaving anything behind."""
    return StageContext(
        accelerator=make_accelerator(program),
        models=program.models(program.phases[0]),
        data=data,
        phase="main",
        log=lambda record: None,
        save=lambda state: None,
        progress=Progressbar(enabled=False),
        log_every=10**9,
    )


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _own_stages(job: Mapping[str, Any], by_key: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = [stage["name"] for stage in job["config"]["stages"]]
    return names if job["start"] is None else names[len(by_key[job["start"]]["config"]["stages"]) :]


def _from_the_beginning(
    job: Mapping[str, Any], by_key: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float]
) -> float:
    """Return the seconds of a run and of all stages before it."""
    before = 0.0 if job["start"] is None else _from_the_beginning(by_key[job["start"]], by_key, seconds)
    return before + seconds[job["key"]]


def _span(seconds: float) -> str:
    if math.isnan(seconds):
        return "an unknown time"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
