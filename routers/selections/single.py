"""Always the same teacher.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from ...errors import ConfigError
from .base import SELECTIONS, Choice, Selection
from .common import equal_weights

if TYPE_CHECKING:
    from ...step import Step


@SELECTIONS.register("single")
class Single(Selection):
    """One teacher for everybody: `w_t = 1 if t = index else 0`. The scores are not read.

    One run for each index shows what each teacher is worth; the best of them on the validation split is the baseline
    "best single teacher".

    Args:
        index: place of the teacher variant in the pool, from 0.
    """

    constant_weights = True

    def __init__(self, index: Annotated[int, Ge(0)] = 0) -> None:
        super().__init__()
        self.index = index
        self.k: int = 1

    @classmethod
    def examples(cls, num_teachers: int) -> dict[str, dict[str, Any]]:
        """Return one `router` section a teacher."""
        rest = {"gate": {"kind": "uniform"}, "balance": [], "combine": "select", "signal": "none"}
        return {str(index): rest | {"selection": {"index": index}} for index in range(num_teachers)}

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Choice:
        """Return (weights, chosen)."""
        experts = logits_BT.shape[1]
        if not 0 <= self.index < experts:
            names = "" if step is None else f": {', '.join(step.experts)}"
            raise ConfigError(
                f"router.selection.index: no teacher variant {self.index}; the pool has {experts}, from 0{names}"
            )
        chosen = torch.full((logits_BT.shape[0], 1), self.index, device=logits_BT.device)
        return equal_weights(probs_BT, chosen), chosen
