"""Validation inside of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..allocator import sparing
from ..distributed import sum_over_processes, world_size
from ..evaluation import model_metrics
from ..evaluation.evaluate import to_device
from ..evaluation.rank_agreement import JudgingTeacher
from ..model import Model
from ..schedules import Progress
from .context import StageContext
from .training_step import TrainingStep


def validate_student(
    context: StageContext, student: Model, split: str, judges: Mapping[str, JudgingTeacher] | None = None
) -> dict[str, Any]:
    """Return the student's metrics on a split, by its logits and its embeddings (modes are restored afterwards)."""
    modes, data = [(part, part.training) for part in student.modules()], context.data
    student.eval()
    try:
        return model_metrics(
            student,
            context.eval_loader(split),
            data.num_classes,
            context.device,
            data.embeddings,
            data.void_class,
            data.kept_ids(split),
            data.split(split).candidates,
            judges,
        )
    finally:
        for part, mode in modes:
            part.training = mode


@torch.no_grad()
def validate_objectives(
    context: StageContext, module: TrainingStep, split: str, progress: Progress
) -> dict[str, float]:
    """Return the mean of every loss term on a split, plus their sums by objective name."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    sums: dict[str, Tensor] = {}
    count = torch.zeros((), device=context.device)
    for batch in sparing(context.eval_loader(split)):
        moved = to_device(batch, context.device)
        rows = sum_over_processes(torch.tensor(float(len(moved["id"])), device=context.device)) / world_size()
        if not rows:
            continue
        for name, value in module(moved, progress, False)["terms"].items():
            sums[name] = sums.get(name, torch.zeros((), device=context.device)) + rows * value
        count += rows
    for child, mode in modes:
        child.training = mode
    total = sum_over_processes(count)
    means = {name: float(sum_over_processes(value) / total) for name, value in sums.items()}
    for name in list(means):
        family, slash, _ = name.partition("/")
        if slash:
            means[family] = means.get(family, 0.0) + means[name]
    return means
