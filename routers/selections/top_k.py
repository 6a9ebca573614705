"""The k best teachers.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...errors import ConfigError
from .base import SELECTIONS, Selection


@SELECTIONS.register("top_k")
class TopK(Selection):
    """The k teachers with the highest scores; their probabilities, renormalised, are the weights.

    Ties go to the lowest index.

    Args:
        k: teachers chosen for an instance, at most the number of teacher variants.
    """

    def __init__(self, k: Annotated[int, Ge(1)] = 1) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"router.selection.k: at least one teacher must be chosen, found {k}")
        self.k: int = k

    def forward(self, logits_BT: Tensor, probs_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (weights, chosen)."""
        experts = logits_BT.shape[1]
        if self.k > experts:
            raise ConfigError(f"router.selection.k: {self.k} teachers chosen of {experts}; lower k or add teachers")
        chosen = logits_BT.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        kept = torch.zeros_like(probs_BT).scatter(1, chosen, probs_BT.gather(1, chosen))
        return kept / kept.sum(dim=1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny), chosen
