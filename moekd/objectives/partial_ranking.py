"""The order that a cross-encoder sees among a row's hard negatives, taught by the loss of a dual encoder.

Shapes: B rows of this process, K negatives of a row, T teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..registry import Injected
from ..routers.routing import Mix
from .base import OBJECTIVES
from .embedding_pair import TeacherScale, check_teacher_scale
from .embeddings import LogitScale, ScaleSource
from .equal_rows import HIDDEN
from .hard_negatives import Miner
from .hard_pairs import Control, HardPairObjective
from .pair_scores import PairScorer

Reduction = Literal["sum", "mean_over_valid"]


def partial_ranking_loss(
    student_BK: Tensor, teacher_BK: Tensor, valid_BK: Tensor, reduction: Reduction = "sum"
) -> Tensor:
    """Each valid candidate has to beat all that the teacher ranks lower; the others are not ordered among themselves:

        L_b = -sum_{j <= J_b} log [ exp(s_{c_j}) / sum_{k >= j} exp(s_{c_k}) ],    c = the teacher's order

    J_b is the length of the run of valid candidates at the head of that order. The Plackett-Luce likelihood of
    ListMLE (Xia et al., ICML 2008), cut after J_b. With J = 1 it is InfoNCE with the teacher's best as the positive,
    with J = 0 it is 0, and the term of a candidate with nothing below it is 0.

    Source: Chen et al., "How to Make Cross Encoder a Good Teacher for Efficient Image-Text Retrieval?" (CPRD), CVPR
    2024, arXiv 2407.07479. *Inferred*: the formula comes from a secondary source; the reductions are ours.

    Args:
        student_BK: the student's scaled similarities; what is no candidate is `HIDDEN`.
        teacher_BK: the teacher's scores: only their order counts.
        valid_BK: which candidates are ranked.
        reduction: the sum over the valid ones, or their mean.

    Returns:
        `[B]`.
    """
    there_BK = student_BK > HIDDEN / 2
    order_BK = teacher_BK.masked_fill(~there_BK, HIDDEN).argsort(dim=1, descending=True, stable=True)
    student_BK, there_BK = student_BK.gather(1, order_BK), there_BK.gather(1, order_BK)
    ranked_BK = (valid_BK.gather(1, order_BK) & there_BK).long().cumprod(dim=1).bool()
    below_BK = student_BK.flip(1).logcumsumexp(dim=1).flip(1)
    losses_BK = torch.where(ranked_BK, below_BK - student_BK, torch.zeros_like(student_BK))
    total_B = losses_BK.sum(dim=1)
    return total_B if reduction == "sum" else total_B / ranked_BK.sum(dim=1).clamp_min(1)


def rank_points(scores_BTK: Tensor, there_BK: Tensor) -> Tensor:
    """Return how many candidates of the row each one beats, by each teacher, `[B, T, K]`; equal scores share.

    Their weighted sum over teachers is a Borda count.
    """
    mine, others = scores_BTK[..., :, None], scores_BTK[..., None, :]
    beaten = (mine > others).to(scores_BTK) + 0.5 * (mine == others).to(scores_BTK)
    return (beaten * there_BK[:, None, None, :]).sum(dim=-1) - 0.5


@OBJECTIVES.register("partial_ranking")
class PartialRanking(HardPairObjective):
    """The student orders the hard negatives of a row as a cross-encoder does, see `partial_ranking_loss`.

    Scores of cross-encoders lie near 0 and 1, cosines do not, so that the order is what can be taught (arXiv
    2407.07479). The student's nearest negatives are mined, the teacher scores them alone, and the confusable ones at
    the head of its order are ranked. The right answer takes no part: `contrastive` beside this loss keeps it above.

    *Inferred*, since not in the text that was at hand: K, what is confusable (a match probability above `threshold`),
    weight 1 of this loss, the mean of both directions.

    Args:
        teacher: name of a teacher or variant; None: all of them judge the same negatives.
        k: K, negatives of a row.
        miner: `student` (its nearest), `sampled`, `random`, or `teacher`, see `hard_negatives`.
        prefilter: candidates that a mining teacher scores; None: the whole batch.
        threshold: match probability above which a negative is ranked; None without one.
        top_m: rank the M best by the teacher: then nothing but the order counts. Without it and a threshold all are.
        merge: of several teachers: the mean of their `ranks` (Borda count), or of their `scores`; a router's weights
            count in both. The threshold is about the mean of probabilities.
        reduction: `sum` over the ranked negatives, or `mean_over_valid`.
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

    name = "partial_ranking"

    def __init__(
        self,
        teacher: str | None = None,
        k: int = 16,
        miner: Miner = "student",
        prefilter: int | None = None,
        threshold: float | None = 0.5,
        top_m: int | None = None,
        merge: Literal["ranks", "scores"] = "ranks",
        reduction: Reduction = "sum",
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
        if top_m is not None and top_m < 1:
            raise ConfigError(f"partial_ranking.top_m must be at least 1 (or null), found {top_m}")
        check_teacher_scale(teacher_scale, "partial_ranking")
        self.teacher, self.k, self.miner, self.prefilter = teacher, k, miner, prefilter
        self.same, self.margin, self.control = same, margin, control
        self.mix: Mix | None = "probs"
        self.threshold, self.top_m, self.merge, self.reduction = threshold, top_m, merge, reduction
        self.student_scale = LogitScale(student_scale, initial_scale, max_scale)
        self.teacher_scale: TeacherScale = teacher_scale
        self.image, self.text, self.scorers = image, text, scorers

    def compare(self, student_BR: Tensor, teacher_BTR: Tensor, weights_BT: Tensor, mix: Mix) -> Tensor:
        """Return `partial_ranking_loss` of the negatives, `[B]`."""
        student_BK, said_BTK = student_BR[:, 1:], teacher_BTR[..., 1:]
        there_BK = student_BK > HIDDEN / 2
        weights = weights_BT[:, :, None]
        points = rank_points(said_BTK, there_BK) if self.merge == "ranks" else said_BTK
        merged_BK = (weights * points).sum(dim=1)
        valid_BK = there_BK
        if self.threshold is not None:
            valid_BK = valid_BK & ((weights * said_BTK.sigmoid()).sum(dim=1) > self.threshold)
        if self.top_m is not None:
            order = merged_BK.masked_fill(~there_BK, HIDDEN).argsort(dim=1, descending=True, stable=True)
            valid_BK = valid_BK & (order.argsort(dim=1) < self.top_m)
        return partial_ranking_loss(student_BK, merged_BK.detach(), valid_BK, self.reduction)
