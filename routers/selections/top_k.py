"""The k best teachers.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ...errors import ConfigError
from ...schedules import Schedule
from ..draws import SampleDraws
from ..gates.base import EXCLUDED
from .base import SELECTIONS, Choice, Selected, Selection

if TYPE_CHECKING:
    from ...step import Step

Normalise = Literal["topk", "none"]


def best_k(scores_BT: Tensor, k: int) -> Tensor:
    """Return the indices of the k highest scores of every row, `[B, k]`, best first; ties go to the lowest index.

    Raises:
        ConfigError: k is larger than T.
    """
    experts = scores_BT.shape[1]
    if k > experts:
        raise ConfigError(f"router.selection.k: {k} teachers chosen of {experts}; lower k or add teachers")
    return scores_BT.sort(dim=1, descending=True, stable=True).indices[:, :k]


def keep(values_BT: Tensor, chosen_Bk: Tensor) -> Tensor:
    """Return the values of the chosen teachers and 0 elsewhere, `[B, T]`."""
    return torch.zeros_like(values_BT).scatter(1, chosen_Bk, values_BT.gather(1, chosen_Bk))


def softmax_of(scores_BT: Tensor, chosen_Bk: Tensor) -> Tensor:
    """Return the softmax over the chosen teachers and 0 elsewhere, `[B, T]`."""
    return torch.zeros_like(scores_BT).scatter(1, chosen_Bk, scores_BT.gather(1, chosen_Bk).softmax(dim=1))


def normalised(weights_BT: Tensor) -> Tensor:
    """Divide every row by its sum."""
    return weights_BT / weights_BT.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights_BT.dtype).tiny)


@SELECTIONS.register("top_k")
class TopK(Selection):
    """The k teachers with the highest scores, weighted by their probabilities; ties go to the lowest index.

    `normalise: topk` divides the weights by their sum (Mixtral of experts, arXiv 2401.04088); `none` keeps the
    probabilities as they are (Switch Transformers, arXiv 2101.03961), so that also a single chosen teacher has a weight
    through which its loss reaches the gate.

    With `explore` above 0, a row gets k teachers by lot instead with that probability in training, so that the gate
    also hears of teachers that it does not prefer (epsilon-greedy). Validation never explores. Lots: see `SampleDraws`.

    Args:
        k: teachers chosen for an instance, at most the number of teacher variants.
        normalise: `topk` or `none`.
        explore: probability of a choice by lot, in [0, 1]; a number or a schedule over the stage.
        seed: of the lots.
    """

    example: ClassVar[Mapping[str, Any]] = {
        "selection": {"k": 2},
        "balance": [{"kind": "switch", "normalise_by_k": True}, {"kind": "z_loss"}],
    }

    def __init__(
        self,
        k: Annotated[int, Ge(1)] = 1,
        normalise: Normalise = "topk",
        explore: Schedule | Annotated[float, Ge(0), Le(1)] = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"router.selection.k: at least one teacher must be chosen, found {k}")
        self.k: int = k
        self.normalise: Normalise = normalise
        self.sums_to_one = normalise == "topk"
        self.explore = explore
        if not isinstance(explore, Schedule):
            _probability(explore)
        self.draws = SampleDraws(seed) if isinstance(explore, Schedule) or explore > 0 else None

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Choice | Selected:
        """Return (weights, chosen)."""
        chosen = best_k(logits_BT, self.k)
        if self.draws is not None and step is not None and step.training and self.training:
            chosen = self._explored(logits_BT.detach(), chosen, step)
            return (softmax_of(logits_BT, chosen) if self.normalise == "topk" else keep(probs_BT, chosen)), chosen
        kept = keep(probs_BT, chosen)
        return (normalised(kept) if self.normalise == "topk" else kept), chosen

    def _explored(self, logits_BT: Tensor, chosen_Bk: Tensor, step: Step) -> Tensor:
        """Return the choice with some rows chosen by lot among the teachers that the gate admits."""
        assert self.draws is not None
        share = _probability(self.explore(step.progress) if isinstance(self.explore, Schedule) else self.explore)
        rows, teachers = logits_BT.shape
        numbers = self.draws(step, teachers + 1, rows)
        lots_BT = numbers[:, 1:].masked_fill(logits_BT <= EXCLUDED, -1.0)
        return best_k(lots_BT, self.k).where(numbers[:, :1] < share, chosen_Bk)


def _probability(explore: float) -> float:
    if not 0 <= explore <= 1:
        raise ConfigError(f"router.selection.explore: a probability must stay between 0 and 1, found {explore}")
    return explore
