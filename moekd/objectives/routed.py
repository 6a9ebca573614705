"""Distillation from the teachers that a router chose, for any pairwise objective.

Shapes: B batch, T teacher variants, k chosen ones, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError
from ..routers.mixing import mixture
from ..routers.positions import by_position, mean_over_positions
from ..signals import Signals
from .base import OBJECTIVES, Loss, Objective, PairwiseObjective
from .kd import KD

if TYPE_CHECKING:
    from ..routers import Routing
    from ..routers.routing import Mix
    from ..step import Step
    from ..teachers import TeacherPool


@OBJECTIVES.register("routed")
class RoutedObjective(Objective):
    """Any pairwise objective, weighted over the teacher variants by the router.

    The router says how its weights are used (`combine`): `select` takes the mean of the losses to the chosen teachers,
    so that the gate gets no gradient from here; `loss` multiplies every teacher's loss with its weight; `target`
    mixes the teachers' distributions first and compares once. Where the router weighs the label too, the loss is
    multiplied by what it leaves to the teachers.

    Args:
        objective: the pairwise objective.
    """

    routable = True

    def __init__(self, objective: PairwiseObjective) -> None:
        super().__init__()
        if not isinstance(objective, PairwiseObjective):
            raise ConfigError(
                f"routed.objective must compare a student with one teacher; found {type(objective).__name__}"
            )
        self.objective = objective
        self.reads_features, self.reads_embeddings = objective.reads_features, objective.reads_embeddings
        self.reads_logits, self.compares_rows = objective.reads_logits, objective.compares_rows
        self.name = "routed"

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{name: [B]}`."""
        student = self.objective.student_of(step)
        measured = self._measured(step, student)
        routing = step.routing
        if routing.positions:
            loss = self._by_position(step, student, routing)
        elif routing.combine == "target":
            loss = self._to_mixture(step, student, routing)
        elif step.routes_rows_first and not self.objective.compares_rows:
            loss = self._by_rows(step, student, routing)
        else:
            terms = (
                self._terms(step, student, routing)
                if measured is None
                else zip(routing.applied_weights.T, measured, strict=True)
            )
            loss = torch.stack([weights_B * loss_B for weights_B, loss_B in terms]).sum(dim=0)
        share_B = routing.teacher_share
        return {self.name: loss if share_B is None else share_B * loss}

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return all variants."""
        return pool.experts

    def _measured(self, step: Step, student: Signals) -> list[Tensor] | None:
        """Return the losses to every expert where the router reads them, so that they are computed once."""
        router = step.models.router
        if router is None or not router.reads_losses:
            return None
        teachers = step.expert_signals.detach()
        losses = [self.objective.pair_with(name, student, said, step.batch) for name, said in teachers.items()]
        if step.expert_losses is None:
            step.expert_losses = torch.stack(losses, dim=1).detach()
        return losses

    def _terms(self, step: Step, student: Signals, routing: Routing) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the weights `[B]` and the losses `[B]` of each term of the sum."""
        teachers, weights_BT = step.expert_signals.detach(), routing.applied_weights
        gathers = self.objective.logits_only and not self.objective.compares_rows
        if gathers and routing.chosen is not None and routing.chosen.shape[1] < len(teachers):
            for rank in range(routing.chosen.shape[1]):
                chosen_B = routing.chosen[:, rank]
                logits = teachers.logits[torch.arange(chosen_B.shape[0], device=chosen_B.device), chosen_B]
                loss_B = self.objective.pair_with("", student, Signals(logits), step.batch)
                yield weights_BT.gather(1, chosen_B[:, None])[:, 0], loss_B
        else:
            for index, (name, signals) in enumerate(teachers.items()):
                yield weights_BT[:, index], self.objective.pair_with(name, student, signals, step.batch)

    def _to_mixture(self, step: Step, student: Signals, routing: Routing) -> Tensor:
        """Return the loss to one target that is mixed from what all teachers say, or the chosen ones alone."""
        objective, weights = self.objective, routing.applied_weights
        if mixes_logits(objective) and not objective.compares_rows and step.routes_rows_first:
            logits, weights = self._chosen_logits(step, routing)
        else:
            teachers = step.expert_signals.detach()
            if not mixes_logits(objective):
                return objective.mixed(student, teachers, weights, routing.mix, step.batch)
            logits = teachers.logits
        teacher = mixed_teacher(logits, weights, routing.mix, objective.temperature)
        return objective.pair_with("", student, teacher, step.batch)

    def _chosen_logits(self, step: Step, routing: Routing) -> tuple[Tensor, Tensor]:
        """Return the logits of the k teachers chosen for each row, `[B, k, C]`, and their weights, `[B, k]`."""
        rows, chosen_Bk = routing.rows(step.experts), routing.chosen
        assert chosen_Bk is not None
        teachers = step.run_rows(rows).detach()
        parts = {name: signals.require_logits(f"{self.name}: '{name}'") for name, signals in teachers.items()}
        like = next(iter(parts.values()))
        logits_BkC = like.new_zeros(*chosen_Bk.shape, *like.shape[1:])
        for index, name in enumerate(step.experts):
            if name in parts:
                r = rows[name]
                logits_BkC[r, (chosen_Bk[r] == index).long().argmax(dim=1)] = parts[name]
        return logits_BkC, routing.applied_weights.gather(1, chosen_Bk.clamp_min(0)) * (chosen_Bk >= 0)

    def _by_position(self, step: Step, student: Signals, routing: Routing) -> Tensor:
        """Weigh the losses of every token or pixel on their own, and take the mean over those that count, `[B]`."""
        teachers = step.expert_signals.detach()
        weights = by_position(routing.applied_weights, routing.positions)
        if routing.combine == "target":
            mixed = mixed_teacher(teachers.logits, weights, routing.mix, self.objective.temperature)
            losses = self.objective.pair_map(student, mixed, step.batch)
        else:
            maps = [self.objective.pair_map(student, s, step.batch) for s in teachers.values()]
            losses = torch.stack([weights[:, index] * m for index, m in enumerate(maps)]).sum(dim=0)
        return mean_over_positions(losses, routing.mask)

    def _by_rows(self, step: Step, student: Signals, routing: Routing) -> Tensor:
        """Run every teacher on the rows that were routed to it, and on no others."""
        rows = routing.rows(step.experts)
        teachers = step.run_rows(rows)
        weights_BT, parts = routing.applied_weights, []
        for index, name in enumerate(step.experts):
            if name not in teachers:
                continue
            r = rows[name]
            batch = {key: value[r] if isinstance(value, Tensor) else value for key, value in step.batch.items()}
            loss = self.objective.pair_with(name, student.select(r), teachers[name].detach(), batch)
            parts.append((r, weights_BT[r, index] * loss))
        total = weights_BT.new_zeros(weights_BT.shape[0], dtype=parts[0][1].dtype if parts else weights_BT.dtype)
        for r, loss in parts:
            total = total.index_add(0, r, loss)
        return total


@OBJECTIVES.register("routed_kd")
class RoutedKD(RoutedObjective):
    """Temperature-scaled KL divergence to the teachers that the router chose (stage 3 of MST-Distill, arXiv
    2507.07015).

    Args:
        temperature: softmax temperature T > 0.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__(KD(temperature=temperature))
        self.name = "routed_kd"


def mixes_logits(objective: Objective) -> bool:
    """Tell whether a target that is mixed from several teachers is mixed from their logits alone."""
    if not isinstance(objective, PairwiseObjective) or objective.mixes_targets:
        return False
    return objective.logits_only or not (objective.reads_features or objective.reads_embeddings)


def mixed_teacher(logits_BTC: Tensor, weights_BT: Tensor, mix: Mix = "probs", temperature: float = 1.0) -> Signals:
    """Return one teacher whose distribution is the `mixture` of the teachers' distributions.

    With `probs`, `softmax(mixed / T) = sum_t w_t softmax(logits_t / T)`; by the convexity of the KL divergence, the
    loss against it is at most the weighted sum of the losses.

    Shape:
        logits_BTC: `[B, T, C, ...]`; weights_BT: `[B, T]`, or `[B, T, ...]` with weights of their own for every
            position; they sum to 1 over T; result: logits `[B, C, ...]`.
    """
    return Signals(mixture(logits_BTC, weights_BT, mix, temperature))
