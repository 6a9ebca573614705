"""More weight to the adapted teacher where it disagrees with the others.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ...errors import ConfigError
from ...registry import Injected
from ..measures import over_pixels, teacher_logits
from .base import GATES, Gate

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("sample_reweight")
class SampleReweightGate(Gate):
    """Weights by the disagreement between a teacher that was adapted to the data and the other teachers: where it
    changed its mind, it has learned something (after the third stage of MulKI, arXiv 2411.06764, whose rule is not
    public; the rule here is inferred from it and from its relatives for two teachers of continual learning).

        score_b[adapted] = D_b / tau,   all other scores 0
        D_b = Jensen-Shannon divergence (nats, at most ln 2) of the adapted teacher and the mean of the others

    Identical teachers have equal weights; the adapted one never has less than 1 / T. For weights by each teacher's
    confidence in the label, the other rule for two such teachers, take `oracle` with `tau: 1`. No labels are read.

    Use it with the selection `dense`.

    Args:
        num_teachers: number T of teacher variants.
        adapted: index of the adapted teacher; the last one by default.
        tau: divergence (nats) that multiplies the adapted teacher's weight, against each of the others, by e.
    """

    needs_teachers = True
    gives_weights = True

    def __init__(
        self,
        num_teachers: Injected[int],
        adapted: Annotated[int, Ge(0)] | None = None,
        tau: Annotated[float, Gt(0)] = 0.2,
    ) -> None:
        super().__init__()
        self.adapted = num_teachers - 1 if adapted is None else adapted
        if not 0 <= self.adapted < num_teachers or tau <= 0:
            raise ConfigError(
                f"router.gate: adapted is one of the {num_teachers} teachers, counted from 0, and tau > 0; found "
                f"{adapted} and {tau}"
            )
        self.tau = tau

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[B, T]`, without gradient."""
        probs = teacher_logits(step).softmax(dim=2)
        experts = probs.shape[1]
        scores_BT = probs.new_zeros(probs.shape[0], experts)
        if experts == 1:
            return scores_BT
        mine = probs[:, self.adapted]
        others = (probs.sum(dim=1) - mine) / (experts - 1)
        divergence = over_pixels(jensen_shannon(mine, others)[:, None])[:, 0]
        scores_BT[:, self.adapted] = divergence / self.tau
        return scores_BT


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of two distributions over axis 1 in nats, `[B, C, ...] -> [B, ...]`."""
    middle = torch.special.entr((p + q) / 2).sum(dim=1)
    return (middle - (torch.special.entr(p).sum(dim=1) + torch.special.entr(q).sum(dim=1)) / 2).clamp_min(0)
