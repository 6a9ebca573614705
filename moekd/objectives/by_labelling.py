"""A loss on the labelled rows and on the others, each with a mean of its own.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ..errors import ConfigError
from .base import OBJECTIVES, Loss, LossTerm, Objective

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool


@OBJECTIVES.register("by_labelling")
class ByLabelling(Objective):
    """The mean of a loss over the labelled rows plus its mean over the unlabelled ones, so that both sets weigh the
    same, whatever their sizes (DHO, arXiv 2505.07675, its loss on teachers' targets).

    Args:
        objective: a loss with a value a row.

    Raises:
        ConfigError: the objective compares rows of a batch.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        if objective.compares_rows:
            raise ConfigError("by_labelling.objective compares the rows of a batch, which can't be told apart then")
        self.objective = objective
        self.reads_features, self.reads_embeddings = objective.reads_features, objective.reads_embeddings
        self.reads_logits, self.routable = objective.reads_logits, objective.routable

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers of the objective."""
        return self.objective.variants(pool)

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return two terms for each of the objective's: `{"kd/labelled": ..., "kd/unlabelled": ...}`."""
        found: dict[str, Loss] = {}
        for name, loss in self.objective(step).items():
            values, mask = (loss.values, loss.mask) if isinstance(loss, LossTerm) else (loss, None)
            if values.dim() == 0:
                found[name] = values
                continue
            labelled = step.batch.get("labelled", torch.ones_like(values, dtype=torch.bool))
            counted = torch.ones_like(labelled) if mask is None else mask
            found[f"{name}/labelled"] = LossTerm(values, counted & labelled)
            found[f"{name}/unlabelled"] = LossTerm(values, counted & ~labelled)
        return found
