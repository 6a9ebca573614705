"""All teachers.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from torch import Tensor

from .base import SELECTIONS, Selection


@SELECTIONS.register("dense")
class Dense(Selection):
    """All teachers, weighted by their probabilities."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, logits_BT: Tensor, probs_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (weights, None)."""
        return probs_BT, None
