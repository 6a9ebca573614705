"""The k best teachers, balanced by a bias that no gradient trains.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from ...distributed import sum_over_processes
from ...errors import ConfigError
from ...registry import Injected
from ..gates.base import EXCLUDED
from .base import SELECTIONS, Selected, Selection
from .top_k import Normalise, best_k, keep, softmax_of

if TYPE_CHECKING:
    from ...step import Step


@SELECTIONS.register("bias_balanced")
class BiasBalanced(Selection):
    """Top-k of `sigmoid(score) + bias`; the bias of a busy teacher falls, that of an idle one rises.

        chosen = k largest of a + b, a = sigmoid(score);   weights = a of the chosen, normalised, without b
        after every step: b_t += rate * sign(mean load - load_t)

    The load is balanced without a loss that disturbs the scores: Wang et al., "Auxiliary-Loss-Free Load Balancing
    Strategy for Mixture-of-Experts", 2024, arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437. The bias is a buffer; the
    load of a step is counted over all processes. Evaluation uses the bias and does not change it.

    Args:
        num_teachers: number T of teacher variants.
        k: teachers chosen for an instance, at most the number of teacher variants.
        rate: step of the bias; 0 leaves it at 0.
        normalise: `topk` divides the weights by their sum, `none` keeps the sigmoids.
    """

    bias: Tensor
    load: Tensor

    def __init__(
        self,
        num_teachers: Injected[int],
        k: Annotated[int, Ge(1)] = 2,
        rate: Annotated[float, Ge(0)] = 1e-3,
        normalise: Normalise = "topk",
    ) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"router.selection.k: at least one teacher must be chosen, found {k}")
        self.k: int = k
        self.rate = rate
        self.normalise: Normalise = normalise
        self.sums_to_one = normalise == "topk"
        self.register_buffer("bias", torch.zeros(num_teachers))
        self.register_buffer("load", torch.zeros(num_teachers, dtype=torch.int64))

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Selected:
        """Return weights, choice and the normalised sigmoids as probabilities."""
        log_affinity_BT = F.logsigmoid(logits_BT)
        affinity_BT = log_affinity_BT.exp()
        biased_BT = (affinity_BT + self.bias).detach().masked_fill(logits_BT <= EXCLUDED, -torch.inf)
        chosen = best_k(biased_BT, self.k)
        if step is not None and step.training and self.training:
            with torch.no_grad():
                counts = (
                    torch.ones_like(chosen) if mask_B is None else mask_B[:, None].expand_as(chosen).to(chosen.dtype)
                )
                self.load += torch.zeros_like(self.load).scatter_add_(0, chosen.flatten(), counts.flatten())
        weights = softmax_of(log_affinity_BT, chosen) if self.normalise == "topk" else keep(affinity_BT, chosen)
        return Selected(weights, chosen, probs=log_affinity_BT.softmax(dim=1))

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the bias by the load of the step, over all processes, and count anew."""
        load = sum_over_processes(self.load.clone()).to(torch.float64)
        self.bias += self.rate * (load.mean() - load).sign().to(self.bias)
        self.load.zero_()
