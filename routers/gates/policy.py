"""Weights by a policy that a reward trains.

Shapes: B batch, T teacher variants, C classes, D width of what the policy reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from ...distributed import sum_over_processes
from ...errors import ModelError
from ...registry import Injected
from ...signals import Signals, full_precision
from ..measures import distance_to_student, student_logits, teacher_cross_entropy, teacher_logits
from ..replay import Replay
from .base import GATES, Gate
from .weights import complement, log_weights

if TYPE_CHECKING:
    from ...step import Step

WHO = "the gate 'policy'"


class Observation(NamedTuple):
    """What the policy knows about a row; all detached.

    Attributes:
        likeness: cosine between student and each teacher, `[B, T]`.
        distance: distillation loss to each teacher, `[B, T]`.
        loss: cross-entropy of each teacher against the label, 0 without one, `[B, T]`.
        logits: of each teacher, `[B, T, C]`.
    """

    likeness: Tensor
    distance: Tensor
    loss: Tensor
    logits: Tensor

    def flat(self) -> Tensor:
        """Return all of it, `[B, T (3 + C)]`: first the likeness, distance and loss of every teacher."""
        return torch.cat([self.likeness, self.distance, self.loss, self.logits.flatten(1)], dim=1)


@GATES.register("policy")
class PolicyGate(Gate):
    """A policy over the teachers that is trained by how well the student does with its weights (MTKD-RL: "Multi-Teacher
    Knowledge Distillation with Reinforcement Learning for Visual Recognition", AAAI 2025; here for logits only).

    It reads, for every teacher, the cosine between student and teacher, the distillation loss KD, the cross-entropy CE
    on the label, and the logits. The weights are a mixture of three distributions over the teachers:

        w_b = m_1 softmax(policy(state_b)) + m_2 (1 - softmax(CE_b)) / (T - 1) + m_3 softmax(KD_b),   m = (1, 1, 1) / 3

    Reward of a labelled row: -(CE of the student + sum_t w_bt KD_bt), standardised over the batch and cut to [0, 1].
    Every `agent_step` batches and at the end of every epoch the remembered rows are replayed once, in order, and plain
    gradient descent lowers the mean over rows and teachers of -reward_b log w_bt, the binary cross-entropy against 1
    of the released code. It teaches "these weights were good", and since the weights of a row sum to 1 it also draws
    them towards equal ones: it is no policy gradient.

    The parameters are moved by the gate alone, never by the stage's optimizer. One process and several do the same, for
    every process remembers the rows of all. Without taps the cosine is that of the centred logits (inferred: the
    published one needs adapted features). Rows without a label have CE = 0 and no reward.

    Use the selection `dense`, combine `loss` and the signal `policy` (the default with this gate).

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        temperature: softmax temperature of KD; take that of the objective.
        hidden: width of the policy's hidden layer.
        mixture: `average`: m as above; `learned`: m is the softmax of three numbers that the reward trains too.
        warm_up: epochs of a stage in which all weights are equal.
        agent_step: batches between two replays.
        agent_lr: learning rate of the replay.
        replay_rows: newest rows that are remembered.
        replay_batch: rows of a step of the replay.
        taps: tap of the student and of each teacher (by name, "student" for the student) whose activations the cosine
            compares; they must have one width.
    """

    needs_teachers = True
    gives_weights = True
    trains_itself = True
    example: ClassVar[Mapping[str, Any]] = {"combine": "loss", "signal": "policy"}

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        temperature: Annotated[float, Gt(0)] = 4.0,
        hidden: Annotated[int, Ge(1)] = 128,
        mixture: Literal["average", "learned"] = "average",
        warm_up: Annotated[int, Ge(0)] = 1,
        agent_step: Annotated[int, Ge(1)] = 1000,
        agent_lr: Annotated[float, Gt(0)] = 0.1,
        replay_rows: Annotated[int, Ge(1)] = 8192,
        replay_batch: Annotated[int, Ge(1)] = 128,
        taps: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.shape = (num_teachers, num_classes)
        self.temperature, self.warm_up, self.taps = temperature, warm_up, taps
        self.agent_step, self.agent_lr, self.replay_batch = agent_step, agent_lr, replay_batch
        self.reads_features = taps is not None
        width = num_teachers * (3 + num_classes)
        self.trunk = nn.Linear(width, hidden, bias=False)
        self.head = nn.Linear(hidden, num_teachers)
        self.mixture = nn.Parameter(torch.zeros(3)) if mixture == "learned" else None
        self.replay = Replay(replay_rows, width + 1)

    @torch.no_grad()
    def forward(self, step: Step) -> Tensor:
        """Return the logarithms of the weights, `[B, T]`, without gradient; remember the rows in training."""
        seen, known_B = self.observe(step)
        weights_BT = self.weights(seen.flat())
        if step.training and step.progress.epoch < self.warm_up:
            weights_BT = torch.full_like(weights_BT, 1 / self.shape[0])
        if step.training and self.training:
            reward_B = rewards(self._student_loss(step, known_B) + (weights_BT * seen.distance).sum(dim=1), known_B)
            self.replay.add(torch.cat([seen.flat(), reward_B[:, None]], dim=1))
        return log_weights(weights_BT)

    def observe(self, step: Step) -> tuple[Observation, Tensor]:
        """Return what the policy reads, and which rows have a label, `[B]`."""
        loss_BT, known_B = teacher_cross_entropy(step, WHO)
        student, teachers = student_logits(step, WHO), teacher_logits(step)
        distance = distance_to_student(student, teachers, self.temperature)
        likeness = centred_cosine(student, teachers) if self.taps is None else self._feature_cosine(step)
        return Observation(likeness, distance, loss_BT.where(known_B[:, None], 0.0), teachers), known_B

    def weights(self, state_BD: Tensor) -> Tensor:
        """Return the weights for what `Observation.flat` gave, `[B, T]`."""
        teachers = self.shape[0]
        distance_BT, loss_BT = state_BD[:, teachers : 2 * teachers], state_BD[:, 2 * teachers : 3 * teachers]
        state_BD = state_BD.to(self.trunk.weight.dtype)
        policy_BT = self.head(self.trunk(state_BD).relu()).softmax(dim=1)
        parts = torch.stack([policy_BT, complement(loss_BT.softmax(dim=1)), distance_BT.softmax(dim=1)])
        if self.mixture is None:
            return parts.mean(dim=0)
        return (self.mixture.softmax(dim=0)[:, None, None] * parts).sum(dim=0)

    def after_step(self) -> None:
        """Replay when enough batches came."""
        if self.replay.batches >= self.agent_step:
            self.learn()

    def after_epoch(self) -> None:
        """Replay what is left."""
        self.learn()

    def learn(self) -> None:
        """Replay the remembered rows once and forget them."""
        parameters = list(self.parameters())
        for rows in self.replay.chunks(self.replay_batch):
            with torch.enable_grad():
                loss = reward_weighted(self.weights(rows[:, :-1]), rows[:, -1])
                gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(self.agent_lr * gradient)
        self.replay.clear()

    def _student_loss(self, step: Step, known_B: Tensor) -> Tensor:
        labels_B = step.batch["label"].where(known_B, 0)
        return F.cross_entropy(student_logits(step, WHO), labels_B, reduction="none").where(known_B, 0.0)

    def _feature_cosine(self, step: Step) -> Tensor:
        """Return the cosine between the tapped activations of student and teachers, `[B, T]`."""
        taps = self.taps or {}
        mine = self._feature(step.student, taps.get("student", ""), "the student")
        found = []
        for name, signals in step.expert_signals.items():
            tap = taps.get(name, taps.get(step.pool.variant(name).teacher, ""))
            theirs = self._feature(signals, tap, f"teacher '{name}'")
            if theirs.shape != mine.shape:
                raise ModelError(
                    f"router.gate.taps: the student's activation has {mine.shape[1]} features, that of teacher "
                    f"'{name}' {theirs.shape[1]}; choose taps of one width"
                )
            found.append(F.cosine_similarity(mine, theirs, dim=1))
        return torch.stack(found, dim=1)

    def _feature(self, signals: Signals, tap: str, who: str) -> Tensor:
        feature = full_precision(signals.feature(tap, f"router.gate.taps ({who})").detach())
        return feature.mean(dim=(2, 3)) if feature.dim() == 4 else feature.flatten(1)


def centred_cosine(student_BC: Tensor, teachers_BTC: Tensor) -> Tensor:
    """Return the cosine between the logits of student and teachers after subtracting their means, `[B, T]`."""
    student = student_BC - student_BC.mean(dim=1, keepdim=True)
    return F.cosine_similarity(student[:, None], teachers_BTC - teachers_BTC.mean(dim=2, keepdim=True), dim=2)


def rewards(losses_B: Tensor, known_B: Tensor) -> Tensor:
    """Return the rewards in [0, 1] of losses: their negatives, standardised over the labelled rows of all processes.

    Rows without a label, and all rows where fewer than two have one, get 0.
    """
    kept_B = losses_B.double().where(known_B, 0.0)
    count, total, squares = sum_over_processes(
        torch.stack([known_B.double().sum(), kept_B.sum(), kept_B.square().sum()])
    )
    mean = total / count.clamp_min(1)
    variance = (squares - count * mean.square()) / (count - 1).clamp_min(1)
    standard_B = (mean - losses_B) / variance.clamp_min(1e-12).sqrt()
    return standard_B.clamp(0, 1).where(known_B & (count > 1), 0.0).to(losses_B.dtype)


def reward_weighted(weights_BT: Tensor, rewards_B: Tensor) -> Tensor:
    """Return the mean over rows and teachers of `-reward_b log w_bt`."""
    logs_BT = weights_BT.clamp_min(torch.finfo(weights_BT.dtype).tiny).log()
    return -(rewards_B[:, None] * logs_BT).mean()
