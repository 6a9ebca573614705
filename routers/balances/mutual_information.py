"""Each task uses few teachers, and all teachers are used.

Shapes: B batch, T teacher variants, J tasks (or modalities: what the gate tells apart).
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor

from ...errors import ConfigError, ModelError
from ...registry import Injected
from ...schedules import Schedule
from ...signals import full_precision
from ..routing import Routing
from .base import BALANCES, Balance, mean_over_rows

SMALL = 1e-4


def joint_distribution(probs_BT: Tensor, tasks_B: Tensor, count: int, mask_B: Tensor | None = None) -> Tensor:
    """Return `P(j, t)`, the share of the rows that belong to task j and go to teacher t, `[J, T]`; sums to 1.

    Args:
        probs_BT: routing probabilities `[B, T]`, rows sum to 1.
        tasks_B: task of every row, negative where there is none; such rows do not count.
        count: number J of tasks.
        mask_B: rows that count, default all.
    """
    probs_BT = full_precision(probs_BT)
    counted_B = tasks_B >= 0 if mask_B is None else (tasks_B >= 0) & mask_B
    members_BJ = F.one_hot(tasks_B.clamp_min(0), count).to(probs_BT)
    return mean_over_rows((members_BJ[:, :, None] * probs_BT[:, None, :]).flatten(1), counted_B).view(count, -1)


def mutual_information(joint_JT: Tensor) -> Tensor:
    """`I(task; teacher) = sum_jt P(j,t) log( P(j,t) / (P(j) P(t)) + 1e-4 )` in nats.

    About 0 where tasks do not differ; at most the smaller of the entropies of tasks and of teachers.
    """
    product_JT = joint_JT.sum(dim=1, keepdim=True) * joint_JT.sum(dim=0, keepdim=True)
    ratio_JT = joint_JT / product_JT.clamp_min(torch.finfo(joint_JT.dtype).tiny)
    return (joint_JT * (ratio_JT + SMALL).log()).sum()


@BALANCES.register("mutual_information")
class MutualInformation(Balance):
    """Minus the mutual information of tasks and teachers, for the gates `task` and `modality`.

    It is small where each task uses teachers of its own and all teachers are used: Chen et al., "Mod-Squad", CVPR 2023,
    arXiv 2212.08066. `running` is for batches of one task each, which do not show the joint distribution
    (arXiv 2306.17165 trains so): a moving average Q of `P(j) p_j`, all tasks equally frequent, stands in for it, and

        loss = -sum_j sum_t P(j) p_jt (log(Q_jt + 1e-4) - log(sum_i Q_it + 1e-4))

    over the tasks j of the batch, with constant logarithms, has the gradient of the mutual information. A task's first
    `warmup` batches only feed its average.

    Args:
        num_teachers: number T of teacher variants.
        weight: weight of the loss, or a schedule; the paper uses 0.0005 to 0.005.
        running: use the moving average.
        tasks: number J of tasks, for `running`.
        momentum: of the moving average after the warm-up, in [0, 1).
        warmup: batches of a task before it has a loss, for `running`.
    """

    joint: Tensor
    batches: Tensor

    def __init__(
        self,
        num_teachers: Injected[int],
        weight: Schedule | float = 5e-4,
        running: bool = False,
        tasks: Annotated[int, Ge(1)] | None = None,
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.99,
        warmup: Annotated[int, Ge(1)] = 100,
    ) -> None:
        super().__init__(weight)
        if running != (tasks is not None):
            raise ConfigError("tasks: give the number of tasks together with 'running: true', and only then")
        self.momentum, self.warmup, self.running = momentum, warmup, running
        if tasks is not None:
            self.register_buffer("joint", torch.zeros(tasks, num_teachers))
            self.register_buffer("batches", torch.zeros(tasks, dtype=torch.int64))

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            ModelError: the gate tells no tasks apart, or another number of them.
        """
        if "groups" not in routing.details:
            raise ModelError("the balance loss 'mutual_information' needs the gate 'task' or 'modality'")
        count = len(routing.details["admitted"])
        joint_JT = joint_distribution(routing.probs, routing.details["groups"], count, routing.mask)
        if not self.running:
            return -mutual_information(joint_JT)
        if count != len(self.joint):
            raise ModelError(f"the balance loss 'mutual_information' has {len(self.joint)} tasks, the gate has {count}")
        return self._surrogate(joint_JT)

    def _surrogate(self, joint_JT: Tensor) -> Tensor:
        tasks = len(self.joint)
        share_J1 = joint_JT.detach().sum(dim=1, keepdim=True)
        equal_JT = joint_JT / share_J1.clamp_min(torch.finfo(joint_JT.dtype).tiny) / tasks
        here_J = share_J1[:, 0] > 0
        with torch.no_grad():
            self.batches += here_J
            first_J = self.batches <= self.warmup
            keep_J = torch.where(first_J, 1 - 1 / self.batches.clamp_min(1), self.momentum)
            moved_JT = keep_J[:, None] * self.joint + (1 - keep_J[:, None]) * equal_JT
            self.joint.copy_(moved_JT.where(here_J[:, None], self.joint))
            gain_JT = (self.joint + SMALL).log() - (self.joint.sum(dim=0, keepdim=True) + SMALL).log()
        return -((equal_JT * gain_JT).sum(dim=1)).where(here_J & ~first_J, 0.0).sum()
