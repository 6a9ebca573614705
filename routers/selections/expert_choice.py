"""Teachers choose their rows.

Shapes: B rows of this process, N rows of the global batch, T teacher variants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor

from ...distributed import gather_rows
from ...errors import ConfigError
from ..gates.base import EXCLUDED
from .base import SELECTIONS, Choice, Selected, Selection
from .top_k import Normalise, normalised

if TYPE_CHECKING:
    from ...step import Step


@SELECTIONS.register("expert_choice")
class ExpertChoice(Selection):
    """Every teacher takes the rows of the batch that it has the highest probability for, the same number each.

        rows of t = the n largest of probs[:, t], n = min(N, ceil(capacity * N / T));   weights = probs where taken

    The load is balanced by construction. A row may get several teachers or none; a row without a teacher gets all with
    the weight 1/T. The choice depends on the whole batch, over all processes, in evaluation too; ties go to the
    earliest row, and nobody takes a row that it has no probability for. Zhou et al., "Mixture-of-Experts with Expert
    Choice Routing", NeurIPS 2022, arXiv 2202.09368.

    Args:
        capacity: teachers that a row gets on average, above 0; the paper uses 2.
        normalise: `none` keeps the probabilities (paper), `topk` divides the weights of a row by their sum.
    """

    example: ClassVar[Mapping[str, Any]] = {"selection": {"normalise": "topk"}}

    def __init__(self, capacity: Annotated[float, Gt(0)] = 2.0, normalise: Normalise = "none") -> None:
        super().__init__()
        if not capacity > 0:
            raise ConfigError(f"router.selection.capacity: must be above 0, found {capacity}")
        self.capacity = capacity
        self.normalise: Normalise = normalise
        self.sums_to_one = normalise == "topk"

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Choice | Selected:
        """Return (weights, chosen `[B, T]`, best first, -1 for who did not take the row)."""
        taken = taken_rows(probs_BT.detach(), self.capacity, mask_B)
        taken &= probs_BT > 0
        empty = ~taken.any(dim=1, keepdim=True)
        open_BT = (logits_BT > EXCLUDED) & empty
        kept = probs_BT * taken
        weights = normalised(kept) if self.normalise == "topk" else kept
        weights = weights.where(~empty, open_BT / open_BT.sum(dim=1, keepdim=True).clamp_min(1))
        order = probs_BT.detach().masked_fill(~(taken | open_BT), -1.0).sort(dim=1, descending=True, stable=True)
        return weights, order.indices.where(order.values >= 0, -1)


def taken_rows(probs_BT: Tensor, capacity: float, mask_B: Tensor | None = None) -> Tensor:
    """Tell which rows every teacher takes, `[B, T]` of bool, seen over the batch of all processes.

    Rows outside of the mask are taken by nobody; with a mask, the number of rows is read back from the device.
    """
    if mask_B is not None:
        probs_BT = probs_BT.masked_fill(~mask_B[:, None], -1.0)
    everyone_NT, first = gather_rows(probs_BT)
    rows, teachers = everyone_NT.shape
    if mask_B is not None:
        rows = int((everyone_NT[:, 0] >= 0).sum())
    count = min(rows, math.ceil(capacity * rows / teachers))
    best = everyone_NT.sort(dim=0, descending=True, stable=True).indices[:count]
    taken = torch.zeros_like(everyone_NT, dtype=torch.bool).scatter(0, best, True)
    return taken[first : first + probs_BT.shape[0]]
