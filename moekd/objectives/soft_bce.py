"""Distillation of sigmoid image-text models: every pair's probability follows the teacher's.

Shapes: B rows of this process, N rows of all processes; widths of student and teacher may differ.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..routers.mixing import mixture
from ..routers.routing import Mix
from ..signals import Signals
from .base import OBJECTIVES
from .contrastive_kd import Form
from .embedding_pair import TeacherScale, check_teacher_scale, teacher_scale
from .embeddings import LogitScale, Pairs, Scale, ScaleSource, model_scale
from .similarity_pair import Scores, SimilarityObjective, equal_weights

Bias = Literal["model"] | float


def soft_bce(student_BN: Tensor, teacher_BN: Tensor, form: Form = "soft_ce") -> Tensor:
    """Binary cross-entropy of every pair with the teacher's probability, summed over the texts:

        L_b = -sum_j [ p_bj log sigmoid(z_bj) + (1 - p_bj) log(1 - sigmoid(z_bj)) ],    p = sigmoid(teacher_BN)

    The gradient, sigmoid(z) - p, is 0 where the models agree; `-log sigmoid((2 p - 1) z)`, which is in use too, has not
    got this property. `kl` subtracts the teacher's entropy, so that the loss ends at 0.

    Shape:
        student_BN, teacher_BN: logits of all pairs, `[B, N]`; result: `[B]`.
    """
    losses = F.binary_cross_entropy_with_logits(student_BN, teacher_BN.sigmoid(), reduction="none")
    if form == "kl":
        losses = losses - F.binary_cross_entropy_with_logits(teacher_BN, teacher_BN.sigmoid(), reduction="none")
    return losses.sum(dim=1)


@OBJECTIVES.register("soft_bce")
class SoftBCE(SimilarityObjective):
    """The student's probability that an image and a text belong together follows the teacher's, see `soft_bce`.

    Student and teacher give the embeddings `image` and `text` (or those named here); their widths may differ. For
    `model` they give their scale as the head `logit_scale` and their bias as `logit_bias`, `[B]`.

    Args:
        teacher: name of a teacher or variant; None: all of them.
        form: `soft_ce` or `kl`.
        student_scale: `learned` (scale and bias are parameters of this objective), `model` or a number.
        teacher_scale: `model`, a number, or a number by teacher.
        teacher_bias: `model` or a number.
        mix: one target for all teachers, the `mixture` of their two-way distributions (together or not) of each pair:
            `probs`, `logits`, `logmeanexp` or `confidence`; None: the mean of the losses over the teachers.
        same: field of integers, such as `concept`: pairs of different rows with the same value do not count.
        initial_scale, max_scale: first and largest value of a learned scale.
        bias: the student's bias: first value of a learned one; the value where `student_scale` is a number.
        image, text: names of the two embeddings.
    """

    name = "soft_bce"

    def __init__(
        self,
        teacher: str | None = None,
        form: Form = "soft_ce",
        student_scale: ScaleSource = "learned",
        teacher_scale: str | float | dict[str, float] = "model",
        teacher_bias: Bias = "model",
        mix: Mix | None = None,
        same: str | None = None,
        initial_scale: float = 10.0,
        max_scale: float = 200.0,
        bias: float = -10.0,
        image: str = "image",
        text: str = "text",
    ) -> None:
        super().__init__()
        self.teacher, self.mix, self.same = teacher, mix, same
        check_teacher_scale(teacher_scale, "soft_bce")
        self.form: Form = form
        self.student_scale = LogitScale(student_scale, initial_scale, max_scale)
        self.teacher_scale: TeacherScale = teacher_scale
        self.teacher_bias = teacher_bias
        self.fixed_bias = float(bias)
        self.bias = nn.Parameter(torch.tensor(float(bias))) if student_scale == "learned" else None
        self.image, self.text = image, text

    def student_scores(self, student: Signals, pairs: Pairs) -> Scores:
        """Return the student's logits of all pairs."""
        return (self.student_scale(student, "soft_bce") * pairs.image_to_text + self._bias(student),)

    def teacher_scores(self, name: str, teacher: Signals, pairs: Pairs) -> Scores:
        """Return the teacher's logits of all pairs."""
        scale, bias = teacher_scale(self.teacher_scale, name, teacher, "soft_bce"), self.teacher_bias
        target_bias = model_scale(teacher, "soft_bce (teacher)", "logit_bias") if isinstance(bias, str) else bias
        return (scale * pairs.image_to_text + target_bias,)

    def compare(self, student_BN: Tensor, teacher_BN: Tensor) -> Tensor:
        """Return `soft_bce`, `[B]`."""
        return soft_bce(student_BN, teacher_BN, self.form)

    def mixture(self, scores_BTN: Tensor, weights_BT: Tensor | None, mix: Mix) -> Tensor:
        """Return the logits of the mixture of the teachers' distributions of each pair, `[B, N]`."""
        two_way_BT2N = torch.stack([torch.zeros_like(scores_BTN), scores_BTN], dim=2)
        mixed_B2N = mixture(two_way_BT2N, equal_weights(scores_BTN, weights_BT), mix)
        return mixed_B2N[:, 1] - mixed_B2N[:, 0]

    def _bias(self, student: Signals) -> Scale:
        if self.bias is not None:
            return self.bias
        if self.student_scale.source == "model":
            return model_scale(student, "soft_bce (student)", "logit_bias")
        return self.fixed_bias
