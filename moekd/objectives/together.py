"""Several objectives to the same teacher as one.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective

if TYPE_CHECKING:
    from ..model import Batch
    from ..teachers import TeacherPool


@OBJECTIVES.register("together")
class Together(PairwiseObjective):
    """The weighted sum of several pairwise objectives to each teacher, so that a router decides on all of them at once.

    UNIC (Sariyildiz et al., ECCV 2024, arXiv 2408.05088) drops teachers by the mean of their losses on the class token
    and on the patches: `embedding_kd` and `token_kd` with weights of 0.5 each, inside of `routed`.

    Args:
        objectives: what is compared with each teacher; all with the same teachers.
        weights: weight of each; 1 by default.
    """

    name = "together"

    def __init__(self, objectives: list[PairwiseObjective], weights: list[float] | None = None) -> None:
        super().__init__()
        if not objectives:
            raise ConfigError("together.objectives is empty; name at least one objective")
        for objective in objectives:
            if not isinstance(objective, PairwiseObjective):
                raise ConfigError(
                    f"together.objectives must each compare a student with one teacher; found "
                    f"{type(objective).__name__}"
                )
            if type(objective).student_of is not PairwiseObjective.student_of:
                raise ConfigError(
                    f"together.objectives: {objective.name} shows the student another input; put 'together' into it"
                )
            if objective.mix is not None:
                raise ConfigError(f"together.objectives: {objective.name}.mix has no meaning here; leave it out")
        self.weights = [1.0] * len(objectives) if weights is None else list(weights)
        if len(self.weights) != len(objectives):
            raise ConfigError(f"together: {len(objectives)} objectives, but {len(self.weights)} weights")
        if len({objective.teacher for objective in objectives}) > 1:
            raise ConfigError("together.objectives: all have to name the same teacher, or none")
        self.objectives = nn.ModuleList(objectives)
        self.parts = objectives
        self.teacher = objectives[0].teacher
        self.reads_features = any(objective.reads_features for objective in objectives)
        self.reads_embeddings = any(objective.reads_embeddings for objective in objectives)
        self.reads_logits = any(objective.reads_logits for objective in objectives)
        self.logits_only = all(objective.logits_only for objective in objectives)
        self.compares_rows = any(objective.compares_rows for objective in objectives)

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers of the objectives."""
        return self.parts[0].variants(pool)

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the weighted sum of the losses, `[B]`."""
        losses = [
            weight * part.pair_with(name, student, teacher, batch)
            for weight, part in zip(self.weights, self.parts, strict=True)
        ]
        return torch.stack(losses).sum(dim=0)
