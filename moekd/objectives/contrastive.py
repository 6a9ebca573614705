"""Learning from image-text pairs: the other pairs of the batch are the negatives.

Shapes: B rows of this process, N rows of all processes, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..signals import Signals
from .base import OBJECTIVES, Loss, Objective, models_named
from .embeddings import LogitScale, Scale, ScaleSource, embedding, model_scale, similarities
from .equal_rows import equal_rows, matching_loss

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool


def softmax_contrastive(image_BD: Tensor, text_BD: Tensor, scale: Scale, equal_BN: Tensor | None = None) -> Tensor:
    """InfoNCE of both directions (CLIP: Radford et al., "Learning Transferable Visual Models From Natural Language
    Supervision", ICML 2021, arXiv 2103.00020, figure 3), one value a row:

        L_b = 1/2 [ -log softmax_j(scale v_b . t_j)_b - log softmax_j(scale t_b . v_j)_b ],    |v| = |t| = 1

    j runs over the rows of all processes. With `equal_BN` the target is spread over all equal rows, see
    `matching_loss`.

    Args:
        image_BD, text_BD: embeddings `[B, D]` of the same rows; they are normalised here.
        scale: positive factor of the cosines, `exp(logit_scale)`; a column `[B, 1]` is possible.
        equal_BN: which rows of all processes are the same thing as each own row, `[B, N]`; None: each is its own.

    Returns:
        `[B]`; 0 where the batch has one row.
    """
    pairs = similarities(image_BD, text_BD)
    image_B = matching_loss(scale * pairs.image_to_text, pairs.targets, equal_BN)
    text_B = matching_loss(scale * pairs.text_to_image, pairs.targets, equal_BN)
    return (image_B + text_B) / 2


def sigmoid_contrastive(
    image_BD: Tensor, text_BD: Tensor, scale: Scale, bias: Scale, equal_BN: Tensor | None = None
) -> Tensor:
    """Every pair on its own (SigLIP: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, arXiv
    2303.15343, equation 1):

        L_b = -sum_j log sigmoid(y_bj (scale v_b . t_j + bias)),    y_bj = 1 for b = j (or b equal to j), else -1

    The sum over the texts j of all processes, so that the mean over the rows is the published loss.

    Args:
        image_BD, text_BD: embeddings `[B, D]` of the same rows; they are normalised here.
        scale, bias: numbers, scalars or columns `[B, 1]`; 10 and -10 at the start of training in SigLIP.
        equal_BN: which rows of all processes are the same thing as each own row, `[B, N]`; None: each is its own.

    Returns:
        `[B]`.
    """
    pairs = similarities(image_BD, text_BD)
    logits_BN = scale * pairs.image_to_text + bias
    sign_BN = (pairs.partners if equal_BN is None else equal_BN).to(logits_BN) * 2 - 1
    return -F.logsigmoid(sign_BN * logits_BN).sum(dim=1)


@OBJECTIVES.register("contrastive")
class Contrastive(Objective):
    """A model learns from image-text pairs, by itself.

    The model gives two embeddings of the same width, `image` and `text` (or the modalities named here), and, for
    `scale: model`, its own scale as the head `logit_scale` (and bias as `logit_bias` for `sigmoid`).

    Args:
        form: `softmax` (CLIP) or `sigmoid` (SigLIP).
        scale: `learned` (a parameter of this objective), `model` (the student's own) or a number.
        initial_scale: first value of a learned scale; None: 1 / 0.07 for `softmax`, 10 for `sigmoid`.
        max_scale: a learned scale stays at or below it.
        initial_bias: first value of the learned bias of `sigmoid`; not used with `scale: model`.
        same: field of integers, such as `concept`: rows with the same value are no negatives of each other; each is a
            partner of all of them.
        image, text: names of the two embeddings.
        on: who learns: `student`, `teachers` (every one), `all` (student and teachers), or names of teachers. A learned
            scale is one for all of them.
    """

    reads_logits, reads_embeddings, compares_rows = False, True, True

    def __init__(
        self,
        form: Literal["softmax", "sigmoid"] = "softmax",
        scale: ScaleSource = "learned",
        initial_scale: float | None = None,
        max_scale: float = 100.0,
        initial_bias: float = -10.0,
        same: str | None = None,
        image: str = "image",
        text: str = "text",
        on: str | list[str] = "student",
    ) -> None:
        super().__init__()
        self.on, self.form, self.same, self.image, self.text = on, form, same, image, text
        default = 1 / 0.07 if form == "softmax" else 10.0
        self.scale = LogitScale(scale, default if initial_scale is None else initial_scale, max_scale)
        own_bias = form == "sigmoid" and scale != "model"
        self.bias = nn.Parameter(torch.tensor(float(initial_bias))) if own_bias else None

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"contrastive": [B]}` for the student, `{"contrastive/NAME": [B]}` for others."""
        equal_BN = equal_rows(step.batch, self.same, "contrastive")
        return {
            "contrastive" if name == "student" else f"contrastive/{name}": self._loss(step.signals(name), equal_BN)
            for name in models_named(self.on, step.pool)
        }

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers that learn."""
        return [name for name in models_named(self.on, pool) if name != "student"]

    def _loss(self, signals: Signals, equal_BN: Tensor | None) -> Tensor:
        image, text = (embedding(signals, name, "contrastive") for name in (self.image, self.text))
        scale = self.scale(signals, "contrastive")
        if self.form == "softmax":
            return softmax_contrastive(image, text, scale, equal_BN)
        bias = model_scale(signals, "contrastive", "logit_bias") if self.bias is None else self.bias
        return sigmoid_contrastive(image, text, scale, bias, equal_BN)
