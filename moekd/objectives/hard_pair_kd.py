"""Contrast and distillation on the negatives that a teacher finds hard, weighted by what is worth learning.

Shapes: B rows of this process, R = 1 + K candidates of a row with the right answer first, T teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..distributed import batch_mean, world_size
from ..errors import ConfigError
from ..registry import Injected
from ..routers.mixing import mixture
from ..routers.routing import Mix
from ..schedules import Schedule
from .base import OBJECTIVES
from .embedding_pair import TeacherScale, check_teacher_scale
from .embeddings import LogitScale, ScaleSource
from .equal_rows import HIDDEN
from .hard_negatives import Miner
from .hard_pairs import Control, HardPairObjective
from .kd import kd_kl
from .pair_scores import PairScorer


def difficulty_weights(
    teacher_BR: Tensor, student_BR: Tensor, temperature: float = 1.0, gamma: float = 1.0, cap: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the weights `(distillation, contrast)` of every row, `[B]` each, constants with mean 1:

        u(p) = -sum p log p / log R,  c = 1 - u(softmax(teacher / T)),  g = softmax(student)_0
        w_kd = c (1 - g),    w_contrast = min(1 - g, cap)^gamma

    Learn where the teacher knows (c) and the student does not (1 - g); contrast the difficult rows, as a focal loss
    does, but none above what the cap allows so far. Where all weights are 0, all are 1.

    *Inferred*: the formulas are ours, after the idea of dynamic contrastive distillation (Rao et al., IEEE TMM 2023,
    arXiv 2207.01426), whose text was known to us as an abstract.

    Args:
        teacher_BR, student_BR: scores, the right answer first; what is no candidate is `HIDDEN`.
        temperature: T of the teacher's distribution.
        gamma: exponent of the difficulty; 0: all rows count the same.
        cap: largest difficulty that counts, in (0, 1].
    """
    teacher_BR, student_BR = teacher_BR.detach(), student_BR.detach()
    log_p = (teacher_BR / temperature).log_softmax(dim=1)
    entropy_B = -(log_p.exp() * log_p.clamp_min(HIDDEN / 2)).sum(dim=1)
    many_B = (student_BR > HIDDEN / 2).sum(dim=1).clamp_min(2).to(entropy_B)
    confidence_B = (1 - entropy_B / many_B.log()).clamp(0, 1)
    difficulty_B = 1 - student_BR.softmax(dim=1)[:, 0]
    return mean_one(confidence_B * difficulty_B), mean_one(difficulty_B.clamp_max(cap) ** gamma)


def mean_one(weights_B: Tensor) -> Tensor:
    """Return the weights with mean 1 over the rows of all processes; all 1 where they are all 0."""
    there = len(weights_B) or world_size() > 1
    mean = batch_mean(weights_B[:, None])[0] if there else weights_B.new_ones(())
    return torch.where(mean > 0, weights_B / mean.where(mean > 0, 1.0), torch.ones_like(weights_B))


@OBJECTIVES.register("hard_pair_kd")
class HardPairKD(HardPairObjective):
    """Among the right answer and the K negatives that the teacher finds hardest, the student finds the right one, and
    its distribution follows the teacher's; both weighted by `difficulty_weights`:

        L_b = contrast w_contrast,b [-log softmax(s_b)_0] + distil w_kd,b T^2 KL( softmax(t_b / T) || softmax(s_b / T) )

    In the style of dynamic contrastive distillation (DCD: Rao et al., IEEE TMM 2023, arXiv 2207.01426), for teachers
    that cannot score many pairs. No code is public. *Inferred*, from the abstract: K, both losses and all weights, and
    that the student is a dual encoder; its feature loss on fused tokens is left out. `weighting: equal` is the static
    form, `miner: student` or `random` are the controls.

    Args:
        teacher: name of a teacher or variant; None: all of them, by the mean of their distributions.
        k: K, negatives of a row; 1 to 8 keep a cross-encoder affordable.
        miner: `teacher`, `student` (its nearest), `sampled` or `random`, see `hard_negatives`.
        prefilter: candidates, nearest by the student, that a mining teacher scores; None: the whole batch.
        contrast: weight of the contrast.
        distil: weight of the distillation.
        weighting: `dynamic`, or `equal` for all rows.
        temperature: T of the distillation.
        gamma: exponent of the difficulty.
        cap: largest difficulty that counts: a number or a schedule; None: from 0.5 to 1 on a line over the stage.
        mix: of several teachers' distributions, see `mixture`; a router has its own.
        student_scale: `learned` (a parameter of this objective), `model` (the student's own) or a number.
        teacher_scale: of the cosines of dual-encoder teachers: `model`, a number, or a number by teacher.
        same: field of integers, such as `concept`: rows with the same value are no negatives of each other.
        control: `shuffled` permutes the teachers' scores among the negatives of a row, anew in every step; the right
            answer keeps its own, and who mines sees the true ones. An experiment that shows whether their order helps.
        margin: candidates whose cosine is larger than the right answer's by more than this are taken for right answers
            and left out (UniME, arXiv 2504.17432, with 0.1); None: none are.
        initial_scale, max_scale: first and largest value of a learned scale.
        image, text: names of the two embeddings.
        scorers: match functions of the teachers that have one.
    """

    name = "hard_pair_kd"

    def __init__(
        self,
        teacher: str | None = None,
        k: int = 4,
        miner: Miner = "teacher",
        prefilter: int | None = 32,
        contrast: float = 1.0,
        distil: float = 1.0,
        weighting: Literal["dynamic", "equal"] = "dynamic",
        temperature: float = 1.0,
        gamma: float = 1.0,
        cap: float | Schedule | None = None,
        mix: Mix = "probs",
        student_scale: ScaleSource = "learned",
        teacher_scale: str | float | dict[str, float] = "model",
        same: str | None = None,
        control: Control = None,
        margin: float | None = None,
        initial_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        image: str = "image",
        text: str = "text",
        scorers: Injected[Mapping[str, PairScorer] | None] = None,
    ) -> None:
        super().__init__()
        self.check_k(k, prefilter)
        if temperature <= 0 or gamma < 0 or min(contrast, distil) < 0 or not contrast + distil:
            raise ConfigError(
                "hard_pair_kd needs a temperature above 0, gamma, contrast and distil of at least 0 and not both of "
                f"the last two 0; found {temperature}, {gamma}, {contrast} and {distil}"
            )
        check_teacher_scale(teacher_scale, "hard_pair_kd")
        self.teacher, self.k, self.miner, self.prefilter = teacher, k, miner, prefilter
        self.same, self.margin, self.control = same, margin, control
        self.contrast, self.distil, self.temperature = contrast, distil, temperature
        self.dynamic, self.gamma, self.cap = weighting == "dynamic", gamma, cap
        self.mix: Mix | None = mix
        self.student_scale = LogitScale(student_scale, initial_scale, max_scale)
        self.teacher_scale: TeacherScale = teacher_scale
        self.image, self.text, self.scorers = image, text, scorers

    def compare(self, student_BR: Tensor, teacher_BTR: Tensor, weights_BT: Tensor, mix: Mix) -> Tensor:
        """Return the weighted sum of contrast and distillation, `[B]`."""
        scaled = teacher_BTR / self.temperature
        teacher_BR = mixture(scaled, weights_BT, mix) * self.temperature
        contrast_B = -student_BR.log_softmax(dim=1)[:, 0]
        distil_B = kd_kl(student_BR, teacher_BR, self.temperature)
        kd_weight_B, contrast_weight_B = torch.ones_like(contrast_B), torch.ones_like(contrast_B)
        if self.dynamic:
            kd_weight_B, contrast_weight_B = difficulty_weights(
                teacher_BR, student_BR, self.temperature, self.gamma, self.cap_now()
            )
        return self.contrast * contrast_weight_B * contrast_B + self.distil * kd_weight_B * distil_B

    def cap_now(self) -> float:
        """Return the largest difficulty that counts at this moment of the stage."""
        if isinstance(self.cap, Schedule):
            return self.cap(self.progress)
        return 0.5 + 0.5 * self.progress.fraction if self.cap is None else self.cap
