"""Final numbers of a run: every student and teacher on every test split, and what the router did there."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from .cache import Needs, SignalCache, SignalStore, TeacherPass
from .data import make_loader
from .evaluation import RoutingStatistics, evaluate_model
from .evaluation.evaluate import to_device
from .model import Model
from .program import Phase, Program
from .progress import Progressbar
from .routers.positions import logits_by_row
from .step import Step
from .tracking import RunFolder


def measure(
    program: Program,
    accelerator: Accelerator,
    run: RunFolder,
    progress: Progressbar,
    store: SignalStore | None = None,
) -> dict[str, Any]:
    """Return the contents of `results.json`; every process has to call this.

    Args:
        program: the trained program.
        accelerator: device and processes.
        run: the run's folder.
        progress: progress bar.
        store: teachers' logits that other runs have computed, or will need.
    """
    models: dict[str, Model] = {}
    for phase in program.phases:
        models["student" if phase.name == "main" else phase.name] = phase.student
    classifiers = {name: program.pool.teacher(name) for name in program.pool.names}
    classifiers = {name: model for name, model in classifiers.items() if model_has_logits(program, model)}
    test: dict[str, dict[str, Any]] = {}
    for split in program.test_splits:
        progress.start(f"test on '{split}'", len(models) + len(classifiers))
        test[split] = {}
        for name, model in models.items():
            test[split][name] = evaluate(program, accelerator, model, split)
            progress.advance()
        known = _stored(program, accelerator, list(classifiers), split, store)
        for name, model in classifiers.items():
            test[split][name] = evaluate(program, accelerator, model, split, known, name)
            progress.advance()
        progress.finish()
    models |= classifiers
    main = program.phases[0]
    records = run.read_metrics() if run.metrics.exists() else []
    stages = [record for record in records if record["type"] == "stage_end"]
    routed = main.router is not None and main.router.fitted and not main.router.reads_losses
    return {
        **program.about,
        "name": run.name,
        "seed": program.seed,
        "class_names": program.data.class_names,
        "titles": {phase.name if phase.name != "main" else "student": phase.title for phase in program.phases},
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "teachers": list(program.pool.names),
        "test": test,
        "routing": measure_routing(program, accelerator, main, program.test_splits[0], store) if routed else None,
        "stages": [{key: value for key, value in record.items() if key != "type"} for record in stages],
        "seconds": sum(record["seconds"] for record in stages),
    }


def evaluate(
    program: Program,
    accelerator: Accelerator,
    model: Model,
    split: str,
    known: SignalCache | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Return the metrics of one model on one split; `known` may hold its logits under `name`."""
    model.to(accelerator.device).eval()
    return evaluate_model(
        lambda batch: (known(batch)[name] if known else model(batch, ())).require_logits("evaluation"),
        _loader(program, accelerator, split),
        program.data.num_classes,
        accelerator.device,
        program.data.void_class,
    )


@torch.no_grad()
def measure_routing(
    program: Program, accelerator: Accelerator, phase: Phase, split: str, store: SignalStore | None = None
) -> dict[str, Any]:
    """Return the routing diagnostics of a phase's router on a split."""
    models = program.models(phase)
    for module in (models.student, models.pool, models.router):
        if module is not None:
            module.to(accelerator.device).eval()
    statistics = RoutingStatistics(models.experts, program.data.num_classes, accelerator.device)
    features = models.router is not None and models.router.reads_features
    known = None if features else _stored(program, accelerator, models.experts, split, store)
    for batch in _loader(program, accelerator, split):
        moved = to_device(batch, accelerator.device)
        step = Step(moved, models, training=False, variants=models.experts, features=features, cache=known)
        routing, labels = step.routing, step.batch.get("label")
        labels = labels.flatten() if labels is not None and tuple(labels.shape[1:]) == routing.positions else None
        classify = labels is not None and all(said.logits is not None for said in step.expert_signals.values())
        logits = logits_by_row(step.expert_signals.logits) if classify else None
        counted = slice(None) if routing.mask is None else routing.mask
        chosen, labels, logits = (None if v is None else v[counted] for v in (routing.chosen, labels, logits))
        statistics.update(routing.probs[counted], chosen, labels, logits, routing.applied_weights[counted])
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


def _stored(
    program: Program, accelerator: Accelerator, variants: list[str], split: str, store: SignalStore | None
) -> SignalCache | None:
    """Return the teachers' logits on a split, if there is a store and they can be kept."""
    data = program.data
    if store is None or not variants or data.split(split).random:
        return None
    pool, device = program.pool.to(accelerator.device).eval(), accelerator.device
    rows, workers = data.eval_batch_size, data.num_workers
    return store.exact(TeacherPass(pool, variants, Needs(), data.split(split), split, rows, device, num_workers=workers))


def _loader(program: Program, accelerator: Accelerator, split: str) -> Any:
    return make_loader(
        program.data.split(split),
        max(program.data.eval_batch_size, accelerator.num_processes),
        shuffle=False,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        num_workers=program.data.num_workers,
    )
