"""Deep mutual learning (Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from .base import OBJECTIVES, Loss
from .mutual_kd import MutualKD

if TYPE_CHECKING:
    from ..step import Step


@OBJECTIVES.register("dml")
class PeerLearning(MutualKD):
    """Student and teachers learn from each other from scratch: `sum_k 1/(K-1) sum_{l != k} KL(p_l || p_k)`.

    The target of each pair is detached. Use it with cross-entropy on all models, and train all of them. It is
    `mutual_kd` with the targets detached and the mean over each learner's K - 1 targets.

    Args:
        temperature: softmax temperature T > 0; 1 in the paper, 4 in MST-Distill's benchmark.
        teachers: names of the teachers that take part, default all.
    """

    def __init__(self, temperature: float = 1.0, teachers: list[str] | None = None) -> None:
        super().__init__(temperature, detach_target=True, teachers=teachers)

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"dml": [B]}`, summed over the learners."""
        total = super().forward(step)["mutual_kd"]
        assert isinstance(total, Tensor)
        return {"dml": total / max(1, len(self.variants(step.pool)))}
