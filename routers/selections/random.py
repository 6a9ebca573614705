"""Teachers by lot.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge
from torch import Tensor

from ..draws import SampleDraws
from .base import SELECTIONS, Choice, Selection
from .common import equal_weights, require_k, require_step
from .top_k import best_k

if TYPE_CHECKING:
    from ...step import Step


@SELECTIONS.register("random")
class Random(Selection):
    """k different teachers drawn anew for every row and training step, each with the weight 1/k.

    Every subset of k teachers has the same chance, so the expected loss is the mean over all teachers; the variance is
    what random routing costs against `uniform`. The scores are not read. The idea of random experts: Zuo et al.,
    "Taming Sparsely Activated Transformer with Stochastic Experts" (THOR), ICLR 2022, arXiv 2110.04260.

    The lot is a function of (seed, number of training steps so far, sample id), see `SampleDraws`: it does not depend
    on the number of processes, and resumes exactly. Validation uses one fixed lot for each sample.

    Args:
        k: teachers chosen for an instance, at most the number of teacher variants.
        seed: of the lots.
    """

    example: ClassVar[Mapping[str, Any]] = {"gate": {"kind": "uniform"}, "combine": "select", "signal": "none"}

    constant_weights = True

    def __init__(self, k: Annotated[int, Ge(1)] = 1, seed: int = 0) -> None:
        super().__init__()
        self.k: int = require_k(k)
        self.draws = SampleDraws(seed)

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Choice:
        """Return (weights, chosen)."""
        chosen = best_k(self.draws(require_step(step, "random"), logits_BT.shape[1], logits_BT.shape[0]), self.k)
        return equal_weights(probs_BT, chosen), chosen
