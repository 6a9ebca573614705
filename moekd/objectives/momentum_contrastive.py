"""Image-text contrast against the features of a momentum teacher, with targets that teachers have softened.

Shapes: B rows of this process, N rows of all processes, K places of the queue, M = N + K candidates, T teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..distributed import gather_rows
from ..errors import ConfigError, ModelError
from ..registry import Injected
from ..routers import Shapes
from ..routers.mixing import mixture
from ..routers.routing import Mix
from ..schedules import Schedule
from ..signals import Signals, full_precision
from .base import OBJECTIVES, Loss, Objective
from .embedding_pair import TeacherScale, check_teacher_scale, teacher_scale
from .embeddings import LogitScale, Scale, ScaleSource, embedding, product, unit
from .equal_rows import hide, row_numbers
from .feature_queue import FeatureQueue, QueueStart
from .similarity_pair import equal_weights

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool


def mix_targets(hard_BM: Tensor, teacher_BM: Tensor, share: float) -> Tensor:
    """`share * softmax(teacher) + (1 - share) * hard`, `[B, M]`.

    Args:
        hard_BM: probabilities, such as one-hot rows.
        teacher_BM: logits of a teacher, or of a mixture of several.
        share: how much of the target the teacher gives, alpha in [0, 1].
    """
    return share * teacher_BM.softmax(dim=1) + (1 - share) * hard_BM


def soft_cross_entropy(logits_BM: Tensor, target_BM: Tensor) -> Tensor:
    """`-sum_j target_j log softmax(logits)_j` of every row, `[B]`."""
    return -(target_BM * full_precision(logits_BM).log_softmax(dim=1)).sum(dim=1)


@OBJECTIVES.register("momentum_contrastive")
class MomentumContrastive(Objective):
    """The student's images find the teacher's texts and the other way round, among the batch and a queue of earlier
    rows; what teachers think of the candidates softens the targets.

    Li et al., "Align before Fuse: Vision and Language Representation Learning with Momentum Distillation", NeurIPS
    2021, arXiv 2107.07651, sections 3.2 and 3.3, equations 1 and 6:

        s = scale v . W,  q_t = scale_t v_t . W_t          W: texts of the batch, then of the queue, by the teacher
        y = alpha softmax(mixture of the q_t) + (1 - alpha) uniform over the candidates that show the same thing
        L_b = -sum_j y_bj log softmax(s_b)_j               the mean of both directions

    The paper's teacher is the momentum one alone; its code replaces the KL divergence of equation 6 by this soft
    cross-entropy, which has the same gradient. Several teachers, each with its own queue of the same rows, are our
    extension: `teachers: [momentum, clip]` takes the mean of their distributions, `weights: router` the router's
    weights of each row. The same targets for classes need no objective of their own: `cross_entropy` with weight 1 -
    alpha and `kd` to the momentum teacher with temperature 1 and weight alpha.

    Rows in the queue that show the same thing as a row of the batch (by `same`, else the same sample of an earlier
    epoch) are right answers, as in the paper's fine-tuning; its pre-training ignores them, since its queue is much
    smaller than its data. Memory: 2 K D floats a teacher.

    Args:
        teacher: whose features are the candidates: a teacher that follows the student.
        teachers: whose distributions soften the targets; None: `teacher` alone, or with `weights: router` those that
            the router chooses among.
        alpha: their share of the target: a number or a schedule. 0.4 in the paper, from 0 on a line in the first epoch:
            `{kind: linear, start: 0, end: 0.4, until: 0.1}` of ten epochs.
        queue: K; 65,536 in the paper, 0 for none.
        queue_start: `empty`, or `random` for random directions as in the released code.
        scale: of the student: `learned` (a parameter of this objective), `model` (its own) or a number.
        teacher_scale: `student` (the student's, as in the paper), `model` (each teacher's own), a number, or one by
            teacher.
        weights: how teachers are weighed: `equal`, or as the `router` says.
        mix: what is mixed with equal weights, see `mixture`; a router has its own `mix`.
        same: field of integers, such as `concept`: rows with the same value show the same thing.
        initial_scale, max_scale: first and largest value of a learned scale; the paper's bounds are 1 / 0.07 and 1000.
        image, text: names of the two embeddings.
        shapes: widths of all embeddings, for the queues.
    """

    reads_logits, reads_embeddings, compares_rows = False, True, True

    def __init__(
        self,
        teacher: str,
        teachers: list[str] | None = None,
        alpha: float | Schedule = 0.4,
        queue: int = 4096,
        queue_start: QueueStart = "empty",
        scale: ScaleSource = "learned",
        teacher_scale: str | float | dict[str, float] = "student",
        weights: Literal["equal", "router"] = "equal",
        mix: Mix = "probs",
        same: str | None = None,
        initial_scale: float = 1 / 0.07,
        max_scale: float = 1000.0,
        image: str = "image",
        text: str = "text",
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        if not isinstance(alpha, Schedule) and not 0 <= alpha <= 1:
            raise ConfigError(f"momentum_contrastive.alpha must be in [0, 1], found {alpha}")
        if teacher_scale != "student":
            check_teacher_scale(teacher_scale, "momentum_contrastive")
        if weights == "router" and teachers is not None:
            raise ConfigError(
                "momentum_contrastive.teachers: with 'weights: router' the router says which; leave it out"
            )
        self.teacher, self.alpha, self.same, self.mix = teacher, alpha, same, mix
        self.routable = weights == "router"
        self.targets = [teacher] if teachers is None else list(teachers)
        self.scale = LogitScale(scale, initial_scale, max_scale)
        self.teacher_scale: TeacherScale = teacher_scale
        self.image, self.text = image, text
        self.queue = FeatureQueue(queue, self._widths(queue, shapes), queue_start)

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"momentum_contrastive": [B]}`; in training, put the rows into the queue."""
        names, weights_BT, mix = self._weighing(step)
        queued = [name.rpartition("/")[0] for name in self.queue.names]
        teachers = {name: step.signals(name).detach() for name in dict.fromkeys([self.teacher, *names, *queued])}
        mine_B = row_numbers(step.batch, self.same, "momentum_contrastive")
        ids_N = gather_rows(mine_B[:, None])[0][:, 0]
        equal_BM = torch.cat([mine_B[:, None] == ids_N, self.queue.same(mine_B)], dim=1)
        alpha = self.alpha(step.progress) if isinstance(self.alpha, Schedule) else self.alpha
        fresh = {
            f"{name}/{modality}": gather_rows(unit(embedding(said, modality, f"momentum_contrastive ('{name}')")))[0]
            for name, said in teachers.items()
            for modality in (self.image, self.text)
        }
        losses = []
        for mine, other in ((self.image, self.text), (self.text, self.image)):
            scale = self.scale(step.student, "momentum_contrastive")
            student_BM = self._scores(step.student, mine, self.teacher, other, fresh, scale)
            target_BM = equal_BM / equal_BM.sum(dim=1, keepdim=True)
            if alpha:
                said_BTM = torch.stack(
                    [
                        self._scores(teachers[n], mine, n, other, fresh, self._scale_of(n, teachers[n], scale))
                        for n in names
                    ],
                    dim=1,
                )
                mixed_BM = mixture(said_BTM, equal_weights(said_BTM, weights_BT), mix)
                target_BM = mix_targets(target_BM, mixed_BM, alpha)
            losses.append(soft_cross_entropy(student_BM, target_BM))
        if self.training and torch.is_grad_enabled():
            self.queue.push(ids_N, {name: fresh[name] for name in self.queue.names})
        return {"momentum_contrastive": torch.stack(losses).mean(dim=0)}

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers that are read."""
        names = pool.experts if self.routable else self.targets
        return list(dict.fromkeys([self.teacher, *names]))

    def _weighing(self, step: Step) -> tuple[list[str], Tensor | None, Mix]:
        """Return the teachers of the targets, their weights `[B, T]`, and what is mixed."""
        if not self.routable:
            return self.targets, None, self.mix
        routing = step.routing
        if unknown := [n for n in step.experts if self.queue.size and f"{n}/{self.text}" not in self.queue.names]:
            raise ModelError(
                f"momentum_contrastive: the router chooses among {step.experts}, but the queue has no rows of "
                f"{unknown}: each has to be a whole teacher that gives '{self.image}' and '{self.text}'"
            )
        return step.experts, routing.applied_weights, routing.mix

    def _scores(
        self, who: Signals, mine: str, teacher: str, other: str, fresh: Mapping[str, Tensor], scale: Scale
    ) -> Tensor:
        """Return scaled similarities with a teacher's candidates, `[B, M]`."""
        own_BD = unit(embedding(who, mine, "momentum_contrastive"))
        key = f"{teacher}/{other}"
        kept_KD = self.queue.rows(key) if self.queue.size else fresh[key][:0]
        candidates_MD = torch.cat([fresh[key], kept_KD.to(fresh[key].dtype)])  # a copy: the queue moves on
        filled_K = self.queue.filled
        hidden_BM = torch.cat([filled_K.new_zeros(len(fresh[key])), ~filled_K]).expand(len(own_BD), -1)
        return hide(scale * product(own_BD, candidates_MD.T), hidden_BM)

    def _scale_of(self, name: str, teacher: Signals, student_scale: Scale) -> Scale:
        if self.teacher_scale == "student":
            return student_scale.detach() if isinstance(student_scale, Tensor) else student_scale
        return teacher_scale(self.teacher_scale, name, teacher, "momentum_contrastive")

    def _widths(self, size: int, shapes: Shapes | None) -> dict[str, int]:
        """Return the widths of the embeddings in the queue, by "teacher/modality"."""
        if size == 0:
            return {}
        if shapes is None:
            raise ConfigError("momentum_contrastive.queue: the widths of the embeddings are not known: give 'shapes'")
        known = {name: widths for name, widths in shapes.embeddings.items() if name != "student"}
        both = [name for name, widths in known.items() if {self.image, self.text} <= set(widths)]
        names = dict.fromkeys([self.teacher, *(both if self.routable else self.targets)])
        found = {}
        for name in names:
            widths = known.get(name.partition("/")[0], {})
            for modality in (self.image, self.text):
                if modality not in widths:
                    gives = ", ".join(widths) or "none"
                    raise ConfigError(
                        f"momentum_contrastive: teacher '{name}' gives no embedding '{modality}'; it gives {gives}"
                    )
                found[f"{name}/{modality}"] = widths[modality]
        return found
