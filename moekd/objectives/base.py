"""What an objective is.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..distributed import masked_mean
from ..errors import ModelError
from ..registry import Registry
from ..signals import Signals

if TYPE_CHECKING:
    from ..model import Batch
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
    #: True when the objective takes teachers through the router and can do with the rows routed to each.
    routable = False

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return the losses by name; the first part of a name (before "/") is the objective's own."""
        raise NotImplementedError

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers and variants that the objective reads, so that a stage plans one forward a teacher."""
        return ()


class PairwiseObjective(Objective):
    """An objective between one student and one teacher; it can be used alone, averaged over teachers, or routed."""

    #: True when `pair` reads nothing but logits, so that stacked (cached, gathered) logits are enough.
    logits_only = True
    #: Softmax temperature at which teachers' probabilities are mixed for a router that mixes targets.
    temperature: float = 1.0

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the loss of every instance, `[B]`."""
        raise NotImplementedError

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


def reduce(loss: Loss) -> Tensor:
    """Mean over the instances that count, over all processes; scalars pass.

    Returns:
        A scalar. A batch without any counting row gives 0 with zero gradients.
    """
    if isinstance(loss, LossTerm):
        return masked_mean(loss.values, loss.mask)
    return loss if loss.dim() == 0 else masked_mean(loss)
