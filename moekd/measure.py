"""Final numbers of a run: every student and teacher on every test split, and what the router did there."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from .allocator import sparing
from .cache import Needs, SignalCache, SignalStore, TeacherPass
from .evaluation import RoutingStatistics
from .evaluation.evaluate import to_device
from .examples import write_examples
from .measure_embeddings import Place
from .measure_models import Measurement
from .model import Model
from .program import Phase, Program
from .progress import Progressbar
from .routers.positions import logits_by_row
from .stages import RunData
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
    teachers = {name: program.pool.teacher(name) for name in program.pool.names}
    test: dict[str, Any] = {}
    embeddings: dict[str, Any] = {}
    place = Place(accelerator.device, accelerator.process_index, accelerator.num_processes)
    measurement = Measurement(program.data, place, models, teachers, program.test_splits[0])
    for split in program.test_splits:
        progress.start(f"test on '{split}'", 1)
        known = _stored(program, accelerator, measurement.classifiers, split, store)
        test[split], parts = measurement.split(split, known)
        embeddings |= {split: parts} if parts else {}
        if split == program.test_splits[0]:
            show(program.data, measurement, split, accelerator, run)
        progress.advance()
        progress.finish()
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
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in measurement.models.items()},
        "teachers": list(program.pool.names),
        "test": test,
        "headline": program.headline,
        "vision_language": embeddings or None,
        "routing": measure_routing(program, accelerator, main, program.test_splits[0], store) if routed else None,
        "stages": [{key: value for key, value in record.items() if key != "type"} for record in stages],
        "seconds": sum(record["seconds"] for record in stages),
    }


def show(
    data: RunData, measurement: Measurement, split: str, accelerator: Accelerator, run: RunFolder, name: str = "student"
) -> None:
    """Write what the report shows of the student on a split; the main process does."""
    said, model = measurement.shown, measurement.students[name]
    if said is None or not accelerator.is_main_process:
        return
    vectors = measurement.embeddings.vectors.get(name) if measurement.embeddings is not None else None
    write_examples(run.path, data.split(split), split, said, model.inputs, data.fields, data.class_names, vectors)


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
    for batch in sparing(program.data.eval_loader(split, accelerator.process_index, accelerator.num_processes)):
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
