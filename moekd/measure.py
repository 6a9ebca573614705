"""Final numbers of a run: every student and teacher on every test split, and what the router did there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from .cache import Needs, SignalCache, SignalStore, TeacherPass
from .data import make_loader
from .evaluation import Collector, Embedded, RoutingStatistics, evaluate_signals
from .evaluation.embedding_metrics import flatten_metrics
from .evaluation.evaluate import to_device
from .measure_embeddings import EmbeddingMeasure
from .model import Batch, Model
from .program import Phase, Program
from .progress import Progressbar
from .routers.positions import logits_by_row
from .signals import Signals
from .step import Step
from .tracking import RunFolder

Results = dict[str, dict[str, Any]]


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
    test, vision_language = measure_models(program, accelerator, models, progress, store)
    models |= {name: program.pool.teacher(name) for name in program.pool.names if name in next(iter(test.values()))}
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
        "headline": program.headline,
        "vision_language": vision_language or None,
        "routing": measure_routing(program, accelerator, main, program.test_splits[0], store) if routed else None,
        "stages": [{key: value for key, value in record.items() if key != "type"} for record in stages],
        "seconds": sum(record["seconds"] for record in stages),
    }


def measure_models(
    program: Program,
    accelerator: Accelerator,
    models: Mapping[str, Model],
    progress: Progressbar,
    store: SignalStore | None = None,
) -> tuple[Results, Results]:
    """Return the metrics of students and teachers by split and model, and the parts that concern their embeddings.

    Models that neither classify nor embed (teachers that only have features) are left out.

    Args:
        program: the trained program.
        accelerator: device and processes.
        models: students by name.
        progress: progress bar.
        store: teachers' logits that other runs have computed, or will need.
    """
    teachers: dict[str, Model] = {name: program.pool.teacher(name) for name in program.pool.names}
    everyone = {**models, **teachers}
    says = {name: abilities(program, model) for name, model in everyone.items()}
    teachers = {name: model for name, model in teachers.items() if any(says[name])}
    classifiers = [name for name in teachers if says[name].classifies]
    embedders = [name for name, found in says.items() if found.embeds and program.data.embeddings is not None]
    measure = None
    if embedders:
        frozen = {name: model for name, model in teachers.items() if name in embedders}
        measure = EmbeddingMeasure(program, accelerator, frozen)
        for name in embedders:
            measure.prepare(name, everyone[name])
    test: Results = {}
    parts: Results = {}
    for split in program.test_splits:
        progress.start(f"test on '{split}'", len(models) + len(teachers))
        known = _stored(program, accelerator, [n for n in classifiers if n not in embedders], split, store)
        found: dict[str, Any] = {}
        part: dict[str, Any] = {}
        seen: dict[str, Embedded] = {}
        for name, model in (teachers | {**models}).items():
            stored = known if name in classifiers and name not in embedders else None
            classifies = says[name].classifies
            if measure is None or name not in embedders:
                found[name] = evaluate(program, accelerator, model, split, stored, name)
            else:
                collector = measure.collector(model, split)
                found[name] = evaluate(program, accelerator, model, split, None, name, collector, classifies)
                embedded = collector.result(accelerator.device)
                part[name] = measure.measure(name, embedded, split, seen)
                found[name] |= flatten_metrics(part[name])
                seen |= {name: embedded} if name in teachers else {}
            progress.advance()
        order = [*models, *teachers]
        test[split] = {name: found[name] for name in order}
        parts |= {split: {name: part[name] for name in order if name in part}} if part else {}
        progress.finish()
    return test, parts


def evaluate(
    program: Program,
    accelerator: Accelerator,
    model: Model,
    split: str,
    known: SignalCache | None = None,
    name: str = "",
    collector: Collector | None = None,
    classifies: bool = True,
) -> dict[str, Any]:
    """Return the metrics of one model on one split.

    Args:
        program: data.
        accelerator: device and processes.
        model: what is measured.
        split: name of the split.
        known: may hold the model's logits under `name`.
        name: of the model.
        collector: keeps what the model says.
        classifies: whether its logits are the data set's classes; else there are no metrics.
    """
    model.to(accelerator.device).eval()

    def forward(batch: Batch) -> Signals:
        said = known(batch)[name] if known else model(batch, ())
        return said if classifies else Signals(embeddings=said.embeddings, heads=said.heads)

    return evaluate_signals(
        forward,
        _loader(program, accelerator, split),
        program.data.num_classes,
        accelerator.device,
        Collector(keep=()) if collector is None else collector,
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


class Abilities(NamedTuple):
    """What a model gives: logits for the classes of the data set, embeddings."""

    classifies: bool
    embeds: bool


@torch.no_grad()
def abilities(program: Program, model: Model) -> Abilities:
    """Return what a model gives, by two rows of the first test split."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    split = program.data.split(program.test_splits[0])
    batch = to_device(split.__getitems__([0, min(1, len(split) - 1)]), device)
    mode = model.training
    said = model.eval()(batch, ())
    model.train(mode)
    return Abilities(
        said.logits is not None and said.logits.shape[1] == program.data.num_classes, bool(said.embeddings)
    )


def _stored(
    program: Program, accelerator: Accelerator, variants: list[str], split: str, store: SignalStore | None
) -> SignalCache | None:
    """Return the teachers' logits on a split, if there is a store and they can be kept."""
    data = program.data
    if store is None or not variants or data.split(split).random:
        return None
    pool, device = program.pool.to(accelerator.device).eval(), accelerator.device
    rows, workers = data.eval_batch_size, data.num_workers
    return store.exact(
        TeacherPass(pool, variants, Needs(), data.split(split), split, rows, device, num_workers=workers)
    )


def _loader(program: Program, accelerator: Accelerator, split: str) -> Any:
    return make_loader(
        program.data.split(split),
        max(program.data.eval_batch_size, accelerator.num_processes),
        shuffle=False,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        num_workers=program.data.num_workers,
    )
