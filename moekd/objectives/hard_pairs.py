"""What the objectives share that compare a student with teachers on a few hard pairs of each row.

Cross-encoders are too slow to score all pairs of a batch; so a miner chooses K wrong candidates of each row, and
teachers score those alone.

Shapes: B rows of this process, N rows of all processes, K negatives of a row, R = 1 + K with the right answer first, T
teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..routers.routing import Mix
from ..schedules import Progress
from ..signals import Signals
from .embedding_pair import EmbeddingObjective, TeacherScale
from .embeddings import LogitScale, similarities
from .equal_rows import HIDDEN, equal_rows
from .hard_negatives import Miner, hard_negatives, pick, sampled_negatives, without_likely_positives
from .pair_scores import Judge, PairScorer, judge_of
from .similarity_pair import equal_weights

if TYPE_CHECKING:
    from ..model import Batch
    from ..step import Step


#: A deliberately wrong teacher, to tell what its scores are worth: `shuffled` among the negatives of a row.
Control = Literal["shuffled"] | None


class HardPairObjective(EmbeddingObjective):
    """A pairwise objective on the right answer and K negatives of each row; the mean of both directions.

    Works with any teacher that gives `image` and `text` embeddings: a cross-encoder, whose network scores pairs by
    `match(image, text)`, or a dual encoder, by scaled cosines. Several teachers, or those of a router with combine
    `target`, judge the same negatives; `compare` says how they are merged.
    """

    compares_rows = True
    mixes_targets = True
    same: str | None = None
    margin: float | None = None
    image: str = "image"
    text: str = "text"
    k: int
    miner: Miner
    #: Candidates, nearest by the student, that a mining teacher scores; None: the whole batch.
    prefilter: int | None = None
    student_scale: LogitScale
    teacher_scale: TeacherScale
    scorers: Mapping[str, PairScorer] | None = None
    control: Control = None
    progress: Progress = Progress()

    def student_of(self, step: Step) -> Signals:
        """Return what the student says, and note how far the stage is, for schedules."""
        self.progress = step.progress
        return step.student

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the loss to one teacher, `[B]`."""
        return self.mixed(student, {name: teacher}, None, "probs", batch)

    def mixed(
        self, student: Signals, teachers: Mapping[str, Signals], weights_BT: Tensor | None, mix: Mix, batch: Batch
    ) -> Tensor:
        """Return the loss to what the teachers say together, `[B]`; see `SimilarityObjective.mixed`."""
        judges = []
        for name, teacher in teachers.items():
            mine, theirs = self.both(student, teacher, self.image, self.text)
            judges.append(judge_of(name, teacher, theirs, self.scorers, self.teacher_scale, self.name))
        pairs = similarities(*mine)
        equal_BN = equal_rows(batch, self.same, self.name)
        positive_BN = pairs.partners if equal_BN is None else equal_BN
        scale = self.student_scale(student, self.name)
        losses = []
        for direction in (0, 1):
            cosines_BN = pairs.text_to_image if direction else pairs.image_to_text
            scores_BN, out_BN = scale * cosines_BN, positive_BN
            if self.margin is not None and cosines_BN.numel():
                out_BN = positive_BN | without_likely_positives(cosines_BN, pairs.targets, self.margin)
            index_BK, valid_BK = self.negatives(scores_BN, out_BN, judges, direction)
            index_BR = torch.cat([pairs.targets[:, None], index_BK], dim=1)
            hidden_BR = torch.cat([valid_BK.new_zeros(len(valid_BK), 1), ~valid_BK], dim=1)
            said = [judge.scores(direction, index_BR).masked_fill(hidden_BR, HIDDEN) for judge in judges]
            said_BTR = torch.stack(said, dim=1)
            if self.control == "shuffled":
                said_BTR = torch.cat([said_BTR[..., :1], shuffled(said_BTR[..., 1:], valid_BK)], dim=2)
            weights = equal_weights(said_BTR, weights_BT)
            losses.append(self.compare(pick(scores_BN, pairs.targets, index_BK, valid_BK), said_BTR, weights, mix))
        return torch.stack(losses).mean(dim=0)

    def negatives(
        self, scores_BN: Tensor, positive_BN: Tensor, judges: list[Judge], direction: int
    ) -> tuple[Tensor, Tensor]:
        """Return the negatives of each row: indices `[B, K]`, and which of them there are, bool `[B, K]`."""
        if self.miner == "student":
            return hard_negatives(scores_BN, positive_BN, self.k)
        if self.miner != "teacher":
            drawn_by = scores_BN if self.miner == "sampled" else torch.zeros_like(scores_BN)
            return sampled_negatives(drawn_by, positive_BN, self.k)
        likely = self.prefilter or scores_BN.shape[1]
        index_BM, valid_BM = hard_negatives(scores_BN, positive_BN, max(likely, self.k))
        said_BM = torch.stack([standardised(judge.scores(direction, index_BM), valid_BM) for judge in judges]).mean(0)
        places_BK, valid_BK = hard_negatives(said_BM, ~valid_BM, self.k)
        return index_BM.gather(1, places_BK), valid_BK

    def compare(self, student_BR: Tensor, teacher_BTR: Tensor, weights_BT: Tensor, mix: Mix) -> Tensor:
        """Return the loss of every row of one direction, `[B]`.

        Args:
            student_BR: the student's scaled similarities, the right answer first; what is no candidate is `HIDDEN`.
            teacher_BTR: the teachers' scores of the same.
            weights_BT: weights of the teachers, which sum to 1.
            mix: how a router mixes them.
        """
        raise NotImplementedError

    def check_k(self, k: int, prefilter: int | None = None) -> None:
        """Refuse numbers that leave no negatives.

        Raises:
            ConfigError: which.
        """
        if k < 1:
            raise ConfigError(f"{self.name}.k must be at least 1, found {k}")
        if prefilter is not None and prefilter < k:
            raise ConfigError(f"{self.name}.prefilter must be at least k ({k}), found {prefilter}")


def standardised(scores_BM: Tensor, valid_BM: Tensor) -> Tensor:
    """Return the scores with mean 0 and standard deviation 1 over each row's candidates, so that teachers compare."""
    count_B1 = valid_BM.sum(dim=1, keepdim=True).clamp_min(1)
    kept_BM = scores_BM.where(valid_BM, 0)
    centred_BM = (scores_BM - kept_BM.sum(dim=1, keepdim=True) / count_B1).where(valid_BM, 0)
    return centred_BM / (centred_BM.square().sum(dim=1, keepdim=True) / count_B1).sqrt().clamp_min(1e-6)


def shuffled(scores_BTK: Tensor, valid_BK: Tensor) -> Tensor:
    """Return the scores in another order within each row: the valid ones change places among themselves by chance, in
    the same way for all teachers. Draws from the global generator, whose state checkpoints hold.
    """
    places_BK = valid_BK.logical_not().long().argsort(dim=1, stable=True)  # the valid ones first
    keys_BK = torch.rand(valid_BK.shape, device=valid_BK.device).masked_fill(~valid_BK, 2.0)
    sources_BK = keys_BK.argsort(dim=1, stable=True)
    places_BTK, sources_BTK = (x[:, None].expand_as(scores_BTK) for x in (places_BK, sources_BK))
    return torch.empty_like(scores_BTK).scatter_(2, places_BTK, scores_BTK.gather(2, sources_BTK))
