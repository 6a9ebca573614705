"""Weights by how near each teacher is to the mean of all.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from ...errors import ConfigError
from ..measures import over_pixels, teacher_logits
from .base import GATES, Gate

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("agreement")
class AgreementGate(Gate):
    """Teachers that say what most others say count more; no labels needed. Ours, not published.

        w_b = softmax(-D_b / tau),   D_bt = JS(p_bt, mean_u p_bu),   p_bt = softmax(z_bt)

    JS is the Jensen-Shannon divergence in nats, between 0 and ln 2. A large tau is uniform.
    For dense logits D is the mean over the pixels.

    Use it with the selection `dense` and combine `loss`.

    Args:
        tau: temperature in nats, above 0.
    """

    needs_teachers = True
    gives_weights = True

    def __init__(self, tau: Annotated[float, Gt(0)] = 0.1) -> None:
        super().__init__()
        if tau <= 0:
            raise ConfigError(f"router.gate.tau: must be positive, found {tau}")
        self.tau = tau

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[B, T]`."""
        probs = teacher_logits(step).softmax(dim=2)
        mean = probs.mean(dim=1, keepdim=True).expand_as(probs)
        return -over_pixels(jensen_shannon(probs, mean)) / self.tau


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return `H((p + q) / 2) - (H(p) + H(q)) / 2` over axis 2, in nats; at least 0."""
    entropies = [torch.special.entr(p).sum(dim=2) for p in ((first + second) / 2, first, second)]
    return (entropies[0] - (entropies[1] + entropies[2]) / 2).clamp_min(0)
