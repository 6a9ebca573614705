"""The k best teachers by scores with noise.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from ...errors import ConfigError
from ...registry import Injected
from ...schedules import Schedule
from ..draws import SampleDraws
from ..gates.inputs import GateInput, On, Shapes
from .base import SELECTIONS, Selected, Selection
from .top_k import best_k, softmax_of

if TYPE_CHECKING:
    from ...step import Step

SMALLEST_STD = 1e-2


@SELECTIONS.register("noisy_top_k")
class NoisyTopK(Selection):
    """Top-k of scores with Gaussian noise (Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated
    Mixture-of-Experts Layer", ICLR 2017, arXiv 1701.06538).

        H_bt = score_bt + e_bt std_bt, e ~ N(0, 1);   weights = softmax over the k largest H

    Noise only in training, so that teachers near the border take turns. `learned`: `std = softplus(W x) + 0.01` with
    W = 0 at the start; `constant`: `std = 1 / T` (V-MoE: Riquelme et al., "Scaling Vision with Sparse Mixture of
    Experts", NeurIPS 2021, arXiv 2106.05974). For the balance loss `load` it tells how likely each teacher was among
    the k, a smooth function of the scores. The noise is a function of (seed, number of training steps, sample id), see
    `SampleDraws`: it does not depend on the number of processes, and resumes exactly.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        k: teachers chosen for an instance, at most the number of teacher variants.
        noise: `learned` or `constant`.
        scale: factor of the noise, at least 0; a number or a schedule over the stage.
        on: what learned noise reads; the page on routers says what each is.
        source: tap or embedding of the student, or field of the batch, for the three that have one.
        width: size of the source, found by itself in a config.
        seed: of the noise.
        shapes: sizes of fields and taps.
    """

    example: ClassVar[Mapping[str, Any]] = {
        "selection": {"noise": "learned"},
        "balance": [{"kind": "importance"}, {"kind": "load"}],
    }

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        k: Annotated[int, Ge(1)] = 2,
        noise: Literal["learned", "constant"] = "constant",
        scale: Schedule | Annotated[float, Ge(0)] = 1.0,
        on: On = "student_logits",
        source: str | None = None,
        width: int | None = None,
        seed: int = 0,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"router.selection.k: at least one teacher must be chosen, found {k}")
        self.k: int = k
        self.scale = scale
        self.input: GateInput | None = None
        if noise == "learned":
            self.input = GateInput(on, num_classes, num_teachers, source, width, shapes=shapes)
            self.layer = nn.Linear(self.input.width, num_teachers, bias=False)
            nn.init.zeros_(self.layer.weight)
            self.needs_teachers = self.input.needs_teachers
        self.draws = SampleDraws(seed)

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Selected:
        """Return weights, choice and load."""
        if step is None or not (step.training and self.training):
            chosen = best_k(logits_BT, self.k)
            weights = softmax_of(logits_BT, chosen)
            return Selected(weights, chosen, details={"load": (weights > 0).to(weights)})
        teachers = logits_BT.shape[1]
        scale = self.scale(step.progress) if isinstance(self.scale, Schedule) else self.scale
        std_BT = scale * self._std(step, logits_BT)
        uniform_BT = self.draws(step, teachers, logits_BT.shape[0]).to(logits_BT).clamp(2**-25, 1 - 2**-24)
        noisy_BT = logits_BT + torch.special.ndtri(uniform_BT) * std_BT
        chosen = best_k(noisy_BT, self.k)
        weights = softmax_of(noisy_BT, chosen)
        load = smooth_load(logits_BT, noisy_BT, std_BT, self.k) if self.k < teachers else (weights > 0).to(weights)
        return Selected(weights, chosen, details={"load": load})

    def _std(self, step: Step, logits_BT: Tensor) -> Tensor:
        if self.input is None:
            return torch.full_like(logits_BT, 1 / logits_BT.shape[1])
        return F.softplus(self.layer(self.input(step))).to(logits_BT) + SMALLEST_STD


def smooth_load(logits_BT: Tensor, noisy_BT: Tensor, std_BT: Tensor, k: int) -> Tensor:
    """Probability that a teacher is among the k best if its own noise were drawn again, `[B, T]`.

    `P_bt = Phi((score_bt - threshold_bt) / std_bt)`, where the threshold is the k-th largest noisy score of the other
    teachers (arXiv 1701.06538, equation 9). Needs k < T.
    """
    values = noisy_BT.topk(k + 1, dim=1).values
    last_in, first_out = values[:, k - 1 : k], values[:, k : k + 1]
    inside = torch.zeros_like(noisy_BT, dtype=torch.bool).scatter(1, best_k(noisy_BT, k), True)
    threshold_BT = torch.where(inside, first_out, last_in)
    return torch.special.ndtr((logits_BT - threshold_BT) / std_BT.clamp_min(1e-6))
