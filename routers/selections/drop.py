"""Teachers that drop out by chance, all but the one with the extreme score.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from ...distributed import sum_over_processes
from ...errors import ConfigError
from ..draws import SampleDraws
from .base import SELECTIONS, Choice, Selection
from .common import require_step

if TYPE_CHECKING:
    from ...step import Step


@SELECTIONS.register("drop")
class Drop(Selection):
    """Keeps the teacher with the highest score for every row; each other one drops out with the probability p.

    With the gate `mismatch` the highest score is the highest distillation loss: the teacher that the student matches
    worst always teaches. That pair is teacher dropping of UNIC (Sariyildiz et al., "UNIC: Universal Classification
    Models via Multi-teacher Distillation", ECCV 2024, arXiv 2408.05088). Kept teachers count the same:

        c_bt = 1 if t = argmax_t score_bt or u_bt >= p else 0
        row:  w_bt = c_bt / sum_t c_bt             every row has the same weight
        all:  w_bt = c_bt B / sum_bt c_bt          every kept pair has the same weight (released code)

    Coefficients carry no gradient. Validation drops nobody. Random numbers: see `SampleDraws`.

    Args:
        p: probability that a teacher drops out, in [0, 1]; 0 is the plain mean, 1 leaves only the kept one.
        keep: who is always kept: the teacher with the `highest` or the `lowest` score; ties go to the lowest index.
        normalise: `row` or `all`, over the batch of all processes; `all` needs combine `loss`.
        seed: of the random numbers.
    """

    example: ClassVar[Mapping[str, Any]] = {"gate": {"kind": "mismatch"}, "combine": "loss", "signal": "none"}

    constant_weights = True

    def __init__(
        self,
        p: Annotated[float, Ge(0), Le(1)] = 0.5,
        keep: Literal["highest", "lowest"] = "highest",
        normalise: Literal["row", "all"] = "row",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ConfigError(f"router.selection.p: a probability is between 0 and 1, found {p}")
        self.p, self.keep, self.normalise = p, keep, normalise
        self.sums_to_one = normalise == "row"
        self.weighs_rows = normalise == "all"
        self.draws = SampleDraws(seed)

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Choice:
        """Return (weights, chosen `[B, T]` with -1 for who dropped out)."""
        step = require_step(step, "drop")
        rows, experts = logits_BT.shape
        scores = logits_BT.detach() if self.keep == "highest" else -logits_BT.detach()
        always = F.one_hot(scores.argmax(dim=1), experts).bool()
        lucky = self.draws(step, experts, rows) >= self.p if step.training else torch.ones_like(always)
        kept = always | lucky
        counts = kept.to(probs_BT.dtype)
        if self.normalise == "row":
            weights = counts / counts.sum(dim=1, keepdim=True)
        else:
            counted = counts if mask_B is None else counts * mask_B[:, None]
            number = counts.new_tensor(float(rows)) if mask_B is None else mask_B.sum().to(counts)
            pairs = sum_over_processes(torch.stack([counted.sum(), number]))
            weights = counts * pairs[1] / pairs[0].clamp_min(1)
        chosen = torch.arange(experts, device=kept.device).expand(rows, -1).where(kept, -1)
        return weights, chosen
