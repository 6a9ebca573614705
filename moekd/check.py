"""A dry run: everything that can go wrong before the first step, and what the run will cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .assembly import tap_shapes
from .data import make_loader
from .dry_run import dry_run
from .evaluation import evaluate_model
from .model import Model
from .program import Program
from .recipe import Recipe
from .stages.trainable import owner_and_path
from .trainer import make_accelerator


@dataclass(frozen=True)
class CheckReport:
    """What a dry run found.

    Attributes:
        data: split names and their rows.
        models: a row a model: name, kind, inputs, parameters, tap shapes, accuracy on validation data.
        stages: a row a stage: phase, name, trains, trainable parameters, epochs, steps, teacher forwards a step,
            memory.
    """

    data: dict[str, int]
    models: list[dict[str, Any]]
    stages: list[dict[str, Any]]


def check(recipe: Recipe, rows: int = 1024) -> CheckReport:
    """Build a recipe, run one step of every stage on real samples, and report shapes and costs; nothing is written.

    Args:
        recipe: what to check.
        rows: validation rows for the models' accuracy.

    Raises:
        MoekdError: what can't work, with its config path; all stages are tried.
    """
    program = recipe.build()
    make_accelerator(program)
    sample = program.data.split("train").__getitems__(list(range(min(4, len(program.data.split("train"))))))
    models: dict[str, Model] = {"student": program.phases[0].student}
    models |= {f"teachers.{name}": program.pool.teacher(name) for name in program.pool.names}
    stages = [stage for phase in program.phases for stage in phase.stages]
    trained = {owner_and_path(name)[0] for stage in stages for name in stage.changes}
    described = [_describe(name, model, program, sample, trained, rows) for name, model in models.items()]
    for name in program.pool.specialised:
        count = sum(p.numel() for p in program.pool.mask(name).parameters())
        described.append({"name": f"mask {name}", "kind": type(program.pool.mask(name)).__name__, "parameters": count})
    router = program.phases[0].router
    if router is not None:
        count = sum(p.numel() for p in router.parameters())
        described.append({"name": "router", "kind": type(router.gate).__name__, "parameters": count})
    return CheckReport({name: len(split) for name, split in program.data.splits.items()}, described, dry_run(program))


def _describe(name: str, model: Model, program: Program, sample: Any, trained: set[str], rows: int) -> dict[str, Any]:
    key = name.partition(".")[2]
    is_trained = name in trained or (key and "teachers" in trained)
    row = {
        "name": name,
        "kind": type(model.network).__name__,
        "inputs": list(model.inputs),
        "parameters": sum(p.numel() for p in model.parameters()),
        "taps": {tap: list(shape[1:]) for tap, shape in tap_shapes(model, sample).items()},
        "accuracy": None if is_trained else _accuracy(model, program, rows),
    }
    return row | {"trained": bool(is_trained)}


def _accuracy(model: Model, program: Program, rows: int) -> float | None:
    """Accuracy of a ready model on the first rows of the validation split."""
    split = program.data.splits.get("val")
    if split is None:
        return None
    batches = []
    for batch in make_loader(split, 256, shuffle=False):
        batches.append(batch)
        if sum(len(b["id"]) for b in batches) >= rows:
            break
    model.eval()
    with torch.no_grad():
        logits = model(batches[0], ()).logits
    if logits is None or logits.shape[1] != program.data.num_classes or "label" not in batches[0]:
        return None
    metrics = evaluate_model(lambda b: model(b, ()).require_logits("check"), batches, program.data.num_classes, "cpu")
    return float(metrics["accuracy"])
