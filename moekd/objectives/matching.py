"""Training a cross-encoder: does this picture belong to this text?

Shapes: B rows of this process, N rows of all processes, K negatives of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..model import Model
from .base import OBJECTIVES, Loss, Objective, models_named
from .embeddings import embedding, everywhere, own_columns, similarities
from .equal_rows import equal_rows
from .hard_negatives import hard_negatives, sampled_negatives

if TYPE_CHECKING:
    from ..signals import Signals
    from ..step import Step
    from ..teachers import TeacherPool


@OBJECTIVES.register("matching")
class Matching(Objective):
    """A cross-encoder tells right pairs from wrong ones: two-class cross-entropy on its match score.

    Image-text matching of ALBEF (Li et al., NeurIPS 2021, arXiv 2107.07651, section 3.2): each row has its own pair, a
    wrong text for its image and a wrong image for its text, drawn in proportion to the softmax of the model's own
    similarities, so that most are hard.

    Args:
        on: who learns: `student`, `teachers` (every one), `all`, or names of teachers. Their networks score pairs of
            embeddings by `match(image, text)`.
        k: wrong texts of an image, and wrong images of a text; 1 in the paper.
        miner: `sampled` as in the paper, `hardest` or `random`.
        form: `binary`: each pair is right or wrong, as in the paper; `softmax`: the right one among the 1 + K.
        same: field of integers, such as `concept`: rows with the same value are no negatives of each other.
        scale: of the cosines by which negatives are drawn.
        image, text: names of the two embeddings.
    """

    reads_logits, reads_embeddings, compares_rows = False, True, True

    def __init__(
        self,
        on: str | list[str] = "teachers",
        k: int = 1,
        miner: Literal["sampled", "hardest", "random"] = "sampled",
        form: Literal["binary", "softmax"] = "binary",
        same: str | None = None,
        scale: float = 1 / 0.07,
        image: str = "image",
        text: str = "text",
    ) -> None:
        super().__init__()
        if k < 1 or not scale > 0:
            raise ConfigError(f"matching needs k >= 1 and a scale above 0, found {k} and {scale}")
        self.on, self.k, self.miner, self.form, self.same, self.scale = on, k, miner, form, same, scale
        self.image, self.text = image, text

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"matching": [B]}` for the student, `{"matching/NAME": [B]}` for others."""
        equal_BN = equal_rows(step.batch, self.same, "matching")
        losses: dict[str, Loss] = {}
        for name in models_named(self.on, step.pool):
            model = step.models.student if name == "student" else step.pool.teacher(name)
            key = "matching" if name == "student" else f"matching/{name}"
            losses[key] = self._loss(name, model, step.signals(name), equal_BN)
        return losses

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers that learn."""
        return [name for name in models_named(self.on, pool) if name != "student"]

    def _loss(self, name: str, model: Model, signals: Signals, equal_BN: Tensor | None) -> Tensor:
        match = getattr(model.network, "match", None)
        if match is None:
            raise ModelError(
                f"matching: '{name}' ({type(model.network).__name__}) can't score pairs: its network needs a method "
                "match(image, text); use a cross-encoder such as 'matcher'"
            )
        image, text = (embedding(signals, part, f"matching ('{name}')") for part in (self.image, self.text))
        (images, first), (texts, _) = everywhere(image), everywhere(text)
        own_B = own_columns(len(image), first, image.device)
        positive_BN = own_B[:, None] == torch.arange(len(images), device=image.device)
        positive_BN = positive_BN if equal_BN is None else equal_BN
        wrong_texts, wrong_images = self._negatives(image.detach(), text.detach(), positive_BN)
        right_B1 = match(image, text)[:, None]
        losses = []
        for direction, (index_BK, valid_BK) in enumerate((wrong_texts, wrong_images)):
            count = index_BK.shape[1]
            mine = (image if direction == 0 else text).repeat_interleave(count, dim=0)
            other = (texts if direction == 0 else images)[index_BK.flatten()]
            wrong_BK = match(mine, other) if direction == 0 else match(other, mine)
            losses.append(self._compare(right_B1, wrong_BK.reshape(index_BK.shape), valid_BK))
        return torch.stack(losses).mean(dim=0)

    def _negatives(
        self, image_BD: Tensor, text_BD: Tensor, positive_BN: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        if self.miner == "random" or image_BD.shape != text_BD.shape:
            scores = (torch.zeros_like(positive_BN, dtype=torch.float32),) * 2
        else:
            pairs = similarities(image_BD, text_BD)
            scores = (self.scale * pairs.image_to_text, self.scale * pairs.text_to_image)
        find = hard_negatives if self.miner == "hardest" else sampled_negatives
        return find(scores[0], positive_BN, self.k), find(scores[1], positive_BN, self.k)

    def _compare(self, right_B1: Tensor, wrong_BK: Tensor, valid_BK: Tensor) -> Tensor:
        """Return the loss of every row of one direction, `[B]`."""
        scores_BR = torch.cat([right_B1, wrong_BK], dim=1).float()
        there_BR = torch.cat([valid_BK.new_ones(len(valid_BK), 1), valid_BK], dim=1)
        if self.form == "softmax":
            return -scores_BR.masked_fill(~there_BR, -torch.inf).log_softmax(dim=1)[:, 0]
        target_BR = torch.zeros_like(scores_BR)
        target_BR[:, 0] = 1
        losses_BR = F.binary_cross_entropy_with_logits(scores_BR, target_BR, reduction="none")
        return (losses_BR * there_BR).sum(dim=1) / there_BR.sum(dim=1)
