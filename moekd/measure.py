"""Final numbers of a run: every student and teacher on every test split, and what the router did there."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from .data import make_loader
from .evaluation import RoutingStatistics, evaluate_model
from .evaluation.evaluate import to_device
from .model import Model
from .program import Phase, Program
from .progress import Progressbar
from .step import Step
from .tracking import RunFolder


def measure(program: Program, accelerator: Accelerator, run: RunFolder, progress: Progressbar) -> dict[str, Any]:
    """Return the contents of `results.json`; every process has to call this."""
    models: dict[str, Model] = {}
    for phase in program.phases:
        models["student" if phase.name == "main" else phase.name] = phase.student
    teachers = {name: program.pool.teacher(name) for name in program.pool.names}
    models |= {name: model for name, model in teachers.items() if model_has_logits(program, model)}
    test: dict[str, dict[str, Any]] = {}
    for split in program.test_splits:
        progress.start(f"test on '{split}'", len(models))
        test[split] = {}
        for name, model in models.items():
            test[split][name] = evaluate(program, accelerator, model, split)
            progress.advance()
        progress.finish()
    main = program.phases[0]
    records = run.read_metrics() if run.metrics.exists() else []
    stages = [record for record in records if record["type"] == "stage_end"]
    return {
        **program.about,
        "name": run.name,
        "seed": program.seed,
        "class_names": program.data.class_names,
        "titles": {phase.name if phase.name != "main" else "student": phase.title for phase in program.phases},
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "teachers": list(teachers),
        "test": test,
        "routing": measure_routing(program, accelerator, main, program.test_splits[0]) if main.router else None,
        "stages": [{key: value for key, value in record.items() if key != "type"} for record in stages],
        "seconds": sum(record["seconds"] for record in stages),
    }


def evaluate(program: Program, accelerator: Accelerator, model: Model, split: str) -> dict[str, Any]:
    """Return the metrics of one model on one split."""
    model.to(accelerator.device).eval()
    return evaluate_model(
        lambda batch: model(batch, ()).require_logits("evaluation"),
        _loader(program, accelerator, split),
        program.data.num_classes,
        accelerator.device,
    )


@torch.no_grad()
def measure_routing(program: Program, accelerator: Accelerator, phase: Phase, split: str) -> dict[str, Any]:
    """Return the routing diagnostics of a phase's router on a split."""
    models = program.models(phase)
    for module in (models.student, models.pool, models.router):
        if module is not None:
            module.to(accelerator.device).eval()
    statistics = RoutingStatistics(models.experts, program.data.num_classes, accelerator.device)
    for batch in _loader(program, accelerator, split):
        step = Step(to_device(batch, accelerator.device), models, training=False)
        labels = step.batch.get("label")
        flat = labels is not None and labels.dim() == 1
        logits = step.expert_signals.logits if flat else None
        statistics.update(step.routing.probs, step.routing.chosen, labels if flat else None, logits)
    return statistics.reduce().compute() | {"split": split}


@torch.no_grad()
def model_has_logits(program: Program, model: Model) -> bool:
    """Tell whether a model is a classifier over the data set's classes."""
    device = next(model.parameters()).device
    batch = to_device(program.data.split(program.test_splits[0]).__getitems__([0, 1]), device)
    mode = model.training
    logits = model.eval()(batch, ()).logits
    model.train(mode)
    return logits is not None and logits.shape[1] == program.data.num_classes


def _loader(program: Program, accelerator: Accelerator, split: str) -> Any:
    return make_loader(
        program.data.split(split),
        max(program.data.eval_batch_size, accelerator.num_processes),
        shuffle=False,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        num_workers=program.data.num_workers,
    )
