"""What an objective is.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..distributed import masked_mean
from ..errors import ModelError
from ..registry import Registry
from ..signals import Signals

if TYPE_CHECKING:
    from ..model import Batch
    from ..routers.routing import Mix
    from ..step import Step
    from ..teachers import TeacherPool


@dataclass(frozen=True)
class LossTerm:
    """Per-instance losses `[B]` of which only the rows with a True `mask` count."""

    values: Tensor
    mask: Tensor | None = None


Loss = Tensor | LossTerm


class Objective(nn.Module):
    """Maps a step to named losses: per-instance losses `[B]` stay unreduced, batch losses are scalars.

    Parameters that an objective owns (projectors, prototypes) are trained by every stage that uses it.
    """

    #: True when the objective reads tapped activations, so that they are recorded.
    reads_features = False
    #: True when it reads embeddings of teachers, or the heads (scales) that belong to them.
    reads_embeddings = False
    #: False when it reads no logits of teachers.
    reads_logits = True
    #: True when the objective takes teachers through the router and can do with the rows routed to each.
    routable = False
    #: True when the loss of an instance depends on the other instances of the batch: then several small batches whose
    #: gradients are added up are not one large batch, and routing always computes it on the whole batch.
    compares_rows = False

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return the losses by name; the first part of a name (before "/") is the objective's own."""
        raise NotImplementedError

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers and variants that the objective reads, so that a stage plans one forward a teacher."""
        return ()


class PairwiseObjective(Objective):
    """An objective between one student and one teacher; it can be used alone, averaged over teachers, or routed.

    Used alone it takes the teacher or variant called `teacher`, or the mean of the losses over all variants, each with
    the same weight. Teachers get no gradient.
    """

    #: Name in the log.
    name = "pairwise"
    #: The one teacher or variant that is read; None: all.
    teacher: str | None = None
    #: True when `pair` reads nothing but logits, so that stacked (cached, gathered) logits are enough.
    logits_only = True
    #: True when `mixed` compares with a mixture of several teachers.
    mixes_targets = False
    #: How several teachers make one target where no router says so; None: the mean of the losses over them.
    mix: Mix | None = None
    #: Softmax temperature at which teachers' probabilities are mixed for a router that mixes targets.
    temperature: float = 1.0

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return the loss to the mixture of the teachers, or the mean over them, `{name: [B]}`."""
        names = self.variants(step.pool)
        if not names:
            raise ModelError(f"{self.name} needs a teacher, but the recipe has none; add a 'teachers' section")
        student = self.student_of(step)
        if self.mix is not None:
            teachers = {name: step.signals(name).detach() for name in names}
            return {self.name: self.mixed(student, teachers, None, self.mix, step.batch)}
        losses = [self.pair_with(name, student, step.signals(name).detach(), step.batch) for name in names]
        return {self.name: torch.stack(losses).mean(dim=0)}

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the one teacher, or all variants."""
        return [self.teacher] if self.teacher else pool.experts

    def student_of(self, step: Step) -> Signals:
        """Return what the student says; objectives that show it another input override this."""
        return step.student

    def mixed(
        self, student: Signals, teachers: Mapping[str, Signals], weights_BT: Tensor | None, mix: Mix, batch: Batch
    ) -> Tensor:
        """Return the loss to one target that is mixed from several teachers, `[B]`.

        Args:
            student: what the student says.
            teachers: what the teachers say, in the order of the axis T.
            weights_BT: weights of the teachers, which sum to 1; None: equal ones.
            mix: how they are mixed.
            batch: the batch.

        Raises:
            ModelError: the objective knows no mixture of targets (`mixes_targets`).
        """
        raise ModelError(
            f"{self.name} compares activations, and teachers' activations can't be mixed as their distributions can; "
            "use combine: select or loss"
        )

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the loss of every instance, `[B]`."""
        raise NotImplementedError

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `pair`; objectives that treat teachers differently (by their widths, say) read the teacher's name.

        Args:
            name: the teacher or variant; "" for a mixture of several.
            student: what the student says.
            teacher: what the teacher says.
            batch: the batch.
        """
        return self.pair(student, teacher, batch)

    def pair_map(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the loss of every position of dense logits, `[B, ...positions]`; its mean over them is `pair`.

        Raises:
            ModelError: the objective has no loss a position.
        """
        raise ModelError(
            f"{type(self).__name__} has one loss an instance, so it can't be routed by token or pixel; route "
            "instances, or use the objective 'kd'"
        )


OBJECTIVES: Registry[Objective] = Registry("objective", "objectives", base=Objective)


def models_named(on: str | Sequence[str], pool: TeacherPool) -> list[str]:
    """Return the names of the models that `on` stands for: `student`, `teachers` (every one that a stage can train),
    `all` (student and those), or their names.
    """
    groups = {"student": ["student"], "teachers": pool.trainable, "all": ["student", *pool.trainable]}
    names = [on] if isinstance(on, str) else on
    return list(dict.fromkeys(model for name in names for model in groups.get(name, [name])))


def reduce(loss: Loss) -> Tensor:
    """Mean over the instances that count, over all processes; scalars pass.

    Returns:
        A scalar. A batch without any counting row gives 0 with zero gradients.
    """
    if isinstance(loss, LossTerm):
        return masked_mean(loss.values, loss.mask)
    return loss if loss.dim() == 0 else masked_mean(loss)
