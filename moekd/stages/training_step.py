"""One training step as a module, so that a data-parallel wrapper sees every trainable parameter in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..model import Batch
from ..objectives import Objective, reduce
from ..schedules import Progress, Schedule
from ..step import Models, Step, StudentSource, TeacherSource
from ..transforms import Transform
from .grad_cache import in_chunks


class WeightedObjective(nn.Module):
    """An objective, its name in the log, and its weight (a number or a schedule)."""

    def __init__(self, objective: Objective, name: str | None = None, weight: Schedule | float = 1.0) -> None:
        super().__init__()
        self.objective, self.name, self.weight = objective, name, weight

    def weight_at(self, progress: Progress) -> float:
        """Return the weight at a moment of the stage."""
        return self.weight(progress) if isinstance(self.weight, Schedule) else float(self.weight)

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the reduced, unweighted losses by their names in the log.

        Raises:
            ConfigError: the objective, or the router that it asks, reads labels that the data do not have.
        """
        try:
            losses = self.objective(step)
        except KeyError as error:
            if error.args != ("label",) or "label" in step.batch:
                raise
            who = self.name or type(self.objective).__name__
            raise ConfigError(
                f"objective '{who}' (or its router) needs labels, but the split has none: name the column in "
                "'data.label', or take objectives that need no labels"
            ) from error
        return {self._rename(name): reduce(value) for name, value in losses.items()}

    def _rename(self, name: str) -> str:
        if self.name is None:
            return name
        _, slash, rest = name.partition("/")
        return f"{self.name}{slash}{rest}"


class TrainingStep(nn.Module):
    """Transforms, objectives and router of a stage: `step(batch, progress) -> {"loss", "terms", "shares", ...}`.

    Args:
        models: student, pool, router.
        objectives: weighted objectives.
        transforms: what is done to a training batch.
        variants: teachers and variants to run in one forward a teacher.
        features: record the teachers' taps.
        cache: signals of frozen teachers by sample id; None runs them.
        micro_batch: rows of a forward of student and teachers in training, see `in_chunks`; None: all rows at once.
        known_student: signals of a frozen student by sample id, in training; None runs it.
    """

    def __init__(
        self,
        models: Models,
        objectives: Sequence[WeightedObjective],
        transforms: Sequence[Transform] = (),
        variants: Sequence[str] = (),
        features: bool = False,
        cache: TeacherSource | None = None,
        micro_batch: int | None = None,
        known_student: StudentSource | None = None,
    ) -> None:
        super().__init__()
        self.models = models
        self.student, self.pool, self.router = models.student, models.pool, models.router
        self.objectives = nn.ModuleList(objectives)
        self.transforms = nn.ModuleList(transforms)
        self.variants, self.features, self.cache = list(variants), features, cache
        self.micro_batch, self.known_student = micro_batch, known_student
        teachers = {f"pool.teachers.{name}": self.pool.teacher(name) for name in self.pool.names}
        #: Read by DistributedDataParallel: frozen teachers are neither sent around nor have to be on one device.
        self._ddp_params_and_buffers_to_ignore = [
            name
            for prefix, teacher in teachers.items()
            for name, _ in (*teacher.named_parameters(prefix=prefix), *teacher.named_buffers(prefix=prefix))
            if not teacher.learns
        ]

    def forward(self, batch: Batch, progress: Progress, training: bool = True) -> dict[str, Any]:
        """Return the loss to minimise and, detached, what went into it.

        Returns:
            loss: scalar. terms: unweighted losses by name. shares: rows each teacher variant taught, `[T]`, and
            entropy of the routing in nats, if a router took part.
        """
        if training:
            for transform in self.transforms:
                batch = transform(batch, progress)
        cache = self.cache if training else None
        models = in_chunks(self.models, self.micro_batch) if training and self.micro_batch else self.models
        student = self.known_student if training else None
        step = Step(batch, models, progress, training, self.variants, self.features, cache, student)
        total: Tensor | float = 0.0
        terms: dict[str, Tensor] = {}
        for weighted in self.objectives:
            assert isinstance(weighted, WeightedObjective)
            weight = weighted.weight_at(progress)
            for name, value in weighted.terms(step).items():
                terms[name] = value.detach()
                total = total + weight * value
        result: dict[str, Any] = {"terms": terms}
        if step.routed is not None:
            for name, value in step.routed.losses.items():
                terms[name] = value.detach()
                total = total + value
            result["shares"] = step.routed.load
            result |= step.routed.stats
        result["loss"] = total if isinstance(total, Tensor) else torch.zeros(())
        return result
