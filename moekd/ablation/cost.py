"""What an ablation is going to cost, from a few timed steps of every stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..cache import build_logit_cache
from ..config import parse_recipe
from ..data import make_loader
from ..model import Batch
from ..program import Phase, Program
from ..recipe import Recipe
from ..schedules import Progress
from ..stages.teacher_plan import plan_teachers
from ..stages.trainable import parameters_of, train_only
from ..stages.training_step import TrainingStep
from .plan import Plan, make_plan
from .spec import Ablation

TIMED = 3


def print_plan(ablation: Ablation, jobs: int = 1) -> None:
    """Print the arms, the stages that they share, and how long the runs are expected to take."""
    plan = make_plan(ablation)
    seed = ablation.seeds[0]
    first = [job for job in plan.jobs if job["seed"] == seed]
    by_key = {job["key"]: job for job in first}
    table = Table(title=f"{ablation.title}: {len(plan.arms)} arms, {len(ablation.seeds)} seeds")
    for column in ("setting", "arm", "starts from", "own stages", "steps", "teacher forwards a step", "about, s"):
        table.add_column(column, overflow="fold")
    total = 0.0
    for job in first:
        own = _own_stages(job, by_key)
        seconds = expected_seconds(job, own)
        total += seconds
        cells = plan.steps.get((job["setting"], str(job["arm"])), [])
        rows = [row for row in cells if row["stage"] in own] if job["arm"] is not None else []
        forwards = "/".join(str(row["teacher_forwards"]) for row in rows)
        steps = str(sum(row["steps"] for row in rows)) if rows else ""
        name = job["arm"] if job["arm"] is not None else f"(shared) {job['title']}"
        table.add_row(job["setting"], name, job["start"] or "", ", ".join(own), steps, forwards, f"{seconds:.0f}")
    console = Console()
    console.print(table)
    for (setting, arm), reason in plan.inapplicable.items():
        console.print(f"not applicable: {', '.join(part for part in (setting, arm) if part)}: {reason}", markup=False)
    whole = total * len(ablation.seeds)
    runs = len(plan.jobs)
    console.print(
        f"{runs} runs, about {_span(whole)} of one process, {_span(whole / max(1, jobs))} with --jobs {jobs}; "
        f"each arm from the beginning would take about {_span(_alone(plan, first, by_key) * len(ablation.seeds))}"
    )


def expected_seconds(job: Mapping[str, Any], stages: list[str]) -> float:
    """Return about how many seconds the given stages of a job take, from a few timed steps of each."""
    program = Recipe(parse_recipe(job["config"], job["key"])).build()
    phase = program.phases[0]
    seconds = 0.0
    for stage in phase.stages:
        if stage.name in stages:
            seconds += _stage_seconds(program, phase, stage.settings)
    return seconds


def _stage_seconds(program: Program, phase: Phase, settings: Any) -> float:
    models, data = program.models(phase), program.data
    modules = train_only(models, settings.trains, nn.ModuleList(settings.objectives))
    plan = plan_teachers(models, data, settings)
    split = data.split(settings.split)
    batches = list(_few(make_loader(split, data.batch_size, shuffle=True, seed=0, epoch=0)))
    cache = build_logit_cache(models.pool, plan.variants, batches, torch.device("cpu")) if plan.cached else None
    step = TrainingStep(models, settings.objectives, settings.transforms, plan.variants, plan.features, cache)
    optimizer = settings.optimizer(parameters_of(modules.values()))
    timings = []
    for batch in batches:
        started = time.perf_counter()
        loss = step(batch, Progress())["loss"]
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        timings.append(time.perf_counter() - started)
    count = -(-len(split) // data.batch_size)
    steps = settings.steps or count * (settings.epochs or 1)
    return steps * min(timings)


def _few(loader: Any) -> Iterator[Batch]:
    for number, batch in enumerate(loader):
        if number == TIMED:
            return
        yield batch


def _own_stages(job: Mapping[str, Any], by_key: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = [stage["name"] for stage in job["config"]["stages"]]
    return names if job["start"] is None else names[len(by_key[job["start"]]["config"]["stages"]) :]


def _alone(plan: Plan, first: list[dict[str, Any]], by_key: Mapping[str, Mapping[str, Any]]) -> float:
    """Return about how many seconds the arms of one seed would take without shared stages."""
    known: dict[str, float] = {}

    def whole(job: Mapping[str, Any]) -> float:
        if job["key"] not in known:
            before = whole(by_key[job["start"]]) if job["start"] is not None else 0.0
            known[job["key"]] = before + expected_seconds(job, _own_stages(job, by_key))
        return known[job["key"]]

    return sum(whole(job) for job in first if job["arm"] is not None)


def _span(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
