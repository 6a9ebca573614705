"""One step of every stage on a few samples, before anything is trained or written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .errors import ConfigError, DataError, MoekdError, did_you_mean
from .evaluation import model_metrics
from .model import Batch
from .program import Phase, Program
from .schedules import Progress
from .stages import StageSettings
from .stages.fit_gates import fit, gates_to_fit, trial_batch
from .stages.grad_cache import refuse_batch_norm
from .stages.judges import METRIC, judging_teachers
from .stages.teacher_plan import plan_teachers
from .stages.trainable import parameters_of, train_only
from .stages.untouched import untouched
from .step import Models, Step

ROWS = 4


def dry_run(program: Program) -> list[dict[str, Any]]:
    """Build the optimizer of every stage and compute its losses on a few samples; models and random state stay as
    they are.

    Returns:
        A row a stage: phase, name, trains, trainable parameters, steps, teacher forwards a step, how teachers run,
        memory for training, names of the losses.

    Raises:
        ConfigError: stages that can't work, one line each.
    """
    rows, problems = [], []
    with _untouched(program):
        for phase in program.phases:
            for index, stage in enumerate(phase.stages):
                where = ("" if phase.name == "main" else f"baselines.{phase.name}.") + f"stages.{stage.name}"
                try:
                    rows.append(_step(program, phase, index))
                except (MoekdError, RuntimeError, ValueError) as error:
                    problems.append(f"{where}: {error}")
    if problems:
        raise ConfigError(problems)
    return rows


def _step(program: Program, phase: Phase, index: int) -> dict[str, Any]:
    settings, models = phase.stages[index].settings, program.models(phase)
    for split in phase.stages[index].splits:
        if split in program.test_splits:
            raise ConfigError(f"split: '{split}' is for the final test; train on another split")
    phase.stages[index].check(models, program.data)
    if phase.stages[index].idle:
        return _summary(phase, settings)
    sample = _sample(program, settings.split)
    modules = train_only(models, settings.trains, nn.ModuleList(settings.objectives))
    if settings.micro_batch is not None:
        refuse_batch_norm(models.student)
    parameters = parameters_of(modules.values())
    if not parameters:
        raise ConfigError("nothing to train: 'trains' names no module with parameters")
    batches = program.data.batches(settings.split)
    steps = settings.steps or (settings.epochs or 0) * -(-batches // settings.accumulate)
    optimizer = settings.optimizer(parameters)
    if settings.scheduler is not None:
        settings.scheduler(optimizer, steps)
    plan = plan_teachers(models, program.data, settings, program.cache)
    for transform in settings.transforms:
        sample = transform(sample, Progress())
    for gate in gates_to_fit(models, settings):
        fit(gate, models, iter([trial_batch(_sample(program, gate.fit_on or settings.split))]))
    before = program.pool.forwards
    step = Step(sample, models, variants=plan.variants, features=plan.features)
    losses = {name: loss for weighted in settings.objectives for name, loss in weighted.terms(step).items()}
    auxiliary = dict(step.routed.losses) if step.routed is not None else {}
    if not any(loss.requires_grad for loss in [*losses.values(), *auxiliary.values()]):
        raise ConfigError("no loss reaches what 'trains' names; check objectives and their weights")
    forwards = program.pool.forwards - before
    _check_monitor(program, models, settings, "student" in modules, list(losses))
    trainable = sum(p.numel() for p in parameters)
    return _summary(phase, settings) | {
        "trainable": trainable,
        "steps": steps,
        "teacher_forwards": 0 if plan.cached else forwards,
        "teachers": "cached" if plan.cached else plan.reason or "none",
        "state_mb": round(trainable * 16 / 2**20, 1),
        "losses": sorted([*losses, *auxiliary]),
    }


def _summary(phase: Phase, settings: StageSettings) -> dict[str, Any]:
    """Return the row of a stage that trains nothing."""
    counts = {"trainable": 0, "steps": 0, "teacher_forwards": 0, "teachers": "none", "state_mb": 0.0}
    names = {"phase": phase.name, "stage": settings.name, "trains": list(settings.trains)}
    return names | counts | {"losses": []}


def _check_monitor(
    program: Program, models: Models, settings: StageSettings, trains_student: bool, losses: list[str]
) -> None:
    """Make sure that the monitored metric exists and its split can be measured."""
    if settings.monitor is None:
        return
    known = {*losses, *(name.partition("/")[0] for name in losses)}
    batch = _sample(program, settings.monitor.split)
    if trains_student:
        student = models.student.eval()
        device = next((p.device for p in student.parameters()), torch.device("cpu"))
        count = program.data.num_classes
        said, void = program.data.embeddings, program.data.void_class
        judges = None
        if settings.monitor.metric == METRIC and said is not None and said.rank_agreement is not None:
            judges = judging_teachers(models.pool, said, [batch], count, device)
        metrics = model_metrics(student, [batch], count, device, said, void, judges=judges)
        known |= {name for name, value in metrics.items() if isinstance(value, float)}
    if settings.monitor.metric not in known:
        name = settings.monitor.metric
        hint = did_you_mean(name, known) or f"; measured are: {', '.join(sorted(known))}"
        raise ConfigError(f"monitor.metric: '{name}' is not measured in this stage{hint}")


def _sample(program: Program, name: str) -> Batch:
    """Return a few rows of a split."""
    split = program.data.split(name)
    for start in range(0, len(split), ROWS):
        batch = split.__getitems__(list(range(start, min(start + ROWS, len(split)))))
        if len(batch["id"]) >= min(2, len(split)):
            return batch
    raise DataError(f"split '{name}' has no readable samples")


@contextmanager
def _untouched(program: Program) -> Iterator[None]:
    """Put buffers, modes, requires_grad, counters and the random state back."""
    students = [phase.student for phase in program.phases]
    routers = [phase.router for phase in program.phases if phase.router is not None]
    objectives = [w for phase in program.phases for stage in phase.stages for w in stage.settings.objectives]
    roots: list[nn.Module] = [program.pool, *students, *routers, *objectives]
    states = [(router, {key: value.clone() for key, value in router.state_dict().items()}) for router in routers]
    gradients = [(parameter, parameter.requires_grad) for root in roots for parameter in root.parameters()]
    teachers = [(teacher, teacher.trained) for teacher in map(program.pool.teacher, program.pool.names)]
    forwards = program.pool.forwards
    try:
        with torch.random.fork_rng(), untouched(*roots):
            yield
    finally:
        program.pool.forwards = forwards
        for teacher, trained in teachers:
            teacher.trained = trained
        for parameter, wanted in gradients:
            parameter.requires_grad_(wanted)
        for router, state in states:
            router.load_state_dict(state)  # what gates remember besides follows from their buffers
