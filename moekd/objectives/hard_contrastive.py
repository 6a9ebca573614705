"""Learning from image-text pairs with the hardest negatives alone, without those that are probably none.

Shapes: B rows of this process, N rows of all processes, K negatives of a row, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import OBJECTIVES, Loss, Objective, models_named
from .embeddings import LogitScale, ScaleSource, embedding, similarities
from .equal_rows import equal_rows
from .hard_negatives import hard_negatives, pick, without_likely_positives

if TYPE_CHECKING:
    from ..signals import Signals
    from ..step import Step
    from ..teachers import TeacherPool


def hard_negative_infonce(
    cosines_BN: Tensor,
    own_B: Tensor,
    k: int,
    scale: Tensor | float,
    margin: float | None = None,
    positive_BN: Tensor | None = None,
    repeat: bool = True,
) -> Tensor:
    """`-log [ exp(z_own) / (exp(z_own) + sum over the K hardest negatives of exp(z_j)) ]`, z = scale times cosine.

    Gu et al., "Breaking the Modality Barrier: Universal Embedding Learning with Multimodal LLMs" (UniME), ACM MM 2025,
    arXiv 2504.17432: candidates that are more alike than the answer by more than `margin` count as false negatives and
    are dropped, and of the rest the K nearest are taken. Their choice has no gradient. With K = N - 1 and no margin it
    is InfoNCE; without negatives it is 0.

    Args:
        cosines_BN: cosines of each row with all candidates.
        own_B: column of each row's answer.
        k: K.
        scale: 1 / temperature.
        margin: beta; None: nothing is dropped.
        positive_BN: known right answers, which are no negatives either; None: each row's own.
        repeat: fill up with the same negatives, hardest first, where fewer than K are left, as the paper has it. (The
            released code does not: its choice then falls on dropped ones.) False: fewer count.

    Returns:
        `[B]`.
    """
    columns = torch.arange(cosines_BN.shape[1], device=cosines_BN.device)
    out_BN = own_B[:, None] == columns if positive_BN is None else positive_BN
    if margin is not None and cosines_BN.numel():
        out_BN = out_BN | without_likely_positives(cosines_BN, own_B, margin)
    index_BK, valid_BK = hard_negatives(cosines_BN, out_BN, k)
    if repeat and index_BK.numel():
        left_B1 = valid_BK.sum(dim=1, keepdim=True)
        wanted = min(k, cosines_BN.shape[1] - 1)
        places_BK = torch.arange(wanted, device=own_B.device) % left_B1.clamp_min(1)
        index_BK, valid_BK = index_BK.gather(1, places_BK), (left_B1 > 0).expand(-1, wanted)
    return -pick(scale * cosines_BN, own_B, index_BK, valid_BK).log_softmax(dim=1)[:, 0]


@OBJECTIVES.register("hard_contrastive")
class HardContrastive(Objective):
    """A model contrasts each row with its hardest negatives, see `hard_negative_infonce`; no teacher.

    Args:
        k: K, negatives of a row; 8 in the paper.
        margin: candidates whose cosine is larger than the answer's by more than this are no negatives; 0.1 in the
            paper; null: all are.
        symmetric: texts contrast with images too; the paper has queries and candidates, one direction.
        repeat: fill up with the same negatives where fewer are left.
        scale: `learned` (a parameter of this objective), `model` (the model's own) or a number; 50 in the paper's code.
        same: field of integers, such as `concept`: rows with the same value are no negatives of each other.
        initial_scale, max_scale: first and largest value of a learned scale.
        image, text: names of the two embeddings: of queries and candidates.
        on: who learns: `student`, `teachers` (every one), `all` (student and teachers), or names of teachers.
    """

    reads_logits, reads_embeddings, compares_rows = False, True, True

    def __init__(
        self,
        k: int = 8,
        margin: float | None = 0.1,
        symmetric: bool = True,
        repeat: bool = True,
        scale: ScaleSource = "learned",
        same: str | None = None,
        initial_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        image: str = "image",
        text: str = "text",
        on: str | list[str] = "student",
    ) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"hard_contrastive.k must be at least 1, found {k}")
        self.k, self.margin, self.symmetric, self.repeat, self.same = k, margin, symmetric, repeat, same
        self.scale = LogitScale(scale, initial_scale, max_scale)
        self.image, self.text, self.on = image, text, on

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"hard_contrastive": [B]}` for the student, `{"hard_contrastive/NAME": [B]}` for others."""
        equal_BN = equal_rows(step.batch, self.same, "hard_contrastive")
        return {
            "hard_contrastive" if name == "student" else f"hard_contrastive/{name}": self._loss(
                step.signals(name), equal_BN
            )
            for name in models_named(self.on, step.pool)
        }

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers that learn."""
        return [name for name in models_named(self.on, pool) if name != "student"]

    def _loss(self, signals: Signals, equal_BN: Tensor | None) -> Tensor:
        pairs = similarities(*(embedding(signals, name, "hard_contrastive") for name in (self.image, self.text)))
        scale = self.scale(signals, "hard_contrastive")
        directions = [pairs.image_to_text, pairs.text_to_image][: 2 if self.symmetric else 1]
        losses = [
            hard_negative_infonce(part_BN, pairs.targets, self.k, scale, self.margin, equal_BN, self.repeat)
            for part_BN in directions
        ]
        return torch.stack(losses).mean(dim=0)
