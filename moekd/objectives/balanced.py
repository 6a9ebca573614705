"""Weights of several losses that training finds by itself.

Shapes: K losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from ..distributed import sum_over_processes, world_size
from ..errors import ConfigError, ModelError
from ..signals import Signals
from .base import OBJECTIVES, Loss, Objective, PairwiseObjective, reduce

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool

#: Weights and averages stay above this.
FLOOR = 1e-6


def uncertainty_weighted(losses_K: Tensor, log_variance_K: Tensor) -> tuple[Tensor, Tensor]:
    """Losses divided by twice the variance of their task, and what keeps the variances from growing (Kendall, Gal and
    Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, arXiv 1705.07115, equation 7):

        L = sum_i [ L_i / (2 s_i^2) + log s_i ],    log_variance_i = log s_i^2

    Returns:
        The weighted losses `[K]` and the sum of log s_i.
    """
    return losses_K * (-log_variance_K).exp() / 2, log_variance_K.sum() / 2


def gradnorm_loss(norms_K: Tensor, weights_K: Tensor, progress_K: Tensor, alpha: float) -> Tensor:
    """What GradNorm minimises over the weights (Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss
    Balancing in Deep Multitask Networks", ICML 2018, arXiv 1711.02257, equation 2):

        L_grad = sum_i | w_i g_i - G r_i^alpha |,    G = mean_i w_i g_i,    r_i = progress_i / mean_j progress_j

    The target G r_i^alpha is a constant: the gradient reaches the weights alone.

    Args:
        norms_K: norms g_i of the gradients of the unweighted losses.
        weights_K: w_i.
        progress_K: loss now divided by the loss at the start; small for losses that learn fast.
        alpha: how strongly slow losses are preferred; 0 makes all gradients equally long.
    """
    lengths_K = weights_K * norms_K.detach()
    rate_K = progress_K.detach() / progress_K.detach().mean().clamp_min(FLOOR)
    target_K = lengths_K.detach().mean() * rate_K**alpha
    return (lengths_K - target_K).abs().sum()


@OBJECTIVES.register("balanced")
class Balanced(Objective):
    """The sum of several losses with weights that follow from their uncertainty, their gradients or their size.

    - `uncertainty`: a learned variance for each loss, see `uncertainty_weighted`.
    - `gradnorm`: learned weights whose sum is K, see `gradnorm_loss`. The gradients are those with respect to all that
      the student says (logits, embeddings, taps), the last that the losses share, so that no backward pass through the
      student is needed; the paper takes the weights of the last shared layer.
    - `adaloss`: w_i proportional to 1 / (running mean of the loss), with the sum K (Hu et al., "Learning Anytime
      Predictions in Neural Networks via Adaptive Loss Balancing", AAAI 2019, arXiv 1708.06832).

    The logged terms are weighted. Weights, averages and first losses are parameters and buffers: checkpoints hold them.
    Learned ones move with the stage's optimizer and learning rate.

    Args:
        objectives: the losses.
        by: what the weights follow from.
        teachers: names of teachers or variants: every objective, which has to be pairwise, then gives one loss for each
            of them, so that teachers are balanced; None: one loss an objective.
        alpha: of `gradnorm`.
        momentum: of the running means of `adaloss`.
    """

    first: Tensor
    average: Tensor

    def __init__(
        self,
        objectives: list[Objective],
        by: Literal["uncertainty", "gradnorm", "adaloss"] = "uncertainty",
        teachers: list[str] | None = None,
        alpha: Annotated[float, Ge(0)] = 1.5,
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.99,
    ) -> None:
        super().__init__()
        if not objectives:
            raise ConfigError("balanced.objectives is empty; name at least two")
        self.objectives, self.by, self.teachers = nn.ModuleList(objectives), by, teachers
        self.alpha, self.momentum = alpha, momentum
        for objective in objectives if teachers is not None else ():
            if not isinstance(objective, PairwiseObjective) or objective.mix is not None:
                raise ConfigError(
                    f"balanced.teachers: {type(objective).__name__} is no loss to a single teacher; leave 'teachers' "
                    "out, or use objectives that compare the student with one"
                )
        count = len(objectives) * (1 if teachers is None else len(teachers))
        if count < 2:
            raise ConfigError("balanced needs at least two losses: more objectives, or 'teachers'")
        self.log_variance = nn.Parameter(torch.zeros(count)) if by == "uncertainty" else None
        self.weights = nn.Parameter(torch.ones(count)) if by == "gradnorm" else None
        self.register_buffer("first", torch.full((count,), -1.0))
        self.register_buffer("average", torch.full((count,), -1.0))
        self.reads_features = any(objective.reads_features for objective in objectives)
        self.reads_embeddings = any(objective.reads_embeddings for objective in objectives)
        self.reads_logits = any(objective.reads_logits for objective in objectives)
        self.routable = any(objective.routable for objective in objectives)
        self.compares_rows = by != "uncertainty" or any(objective.compares_rows for objective in objectives)

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers of all objectives."""
        if self.teachers is not None:
            return self.teachers
        read = [name for part in self.objectives if isinstance(part, Objective) for name in part.variants(pool)]
        return list(dict.fromkeys(read))

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return the weighted losses, `{"balanced/kd": scalar, ...}`, and what trains the weights."""
        names, losses = zip(*self._losses(step), strict=True)
        losses_K = torch.stack([loss.to(torch.promote_types(loss.dtype, torch.float32)) for loss in losses])
        learns = step.training and self.training and torch.is_grad_enabled()
        if self.log_variance is not None:
            weighted_K, further = uncertainty_weighted(losses_K, self.log_variance)
            return dict(zip(names, weighted_K, strict=True)) | {"balanced/uncertainty": further}
        if self.weights is None:
            return dict(zip(names, self._by_size(losses_K, learns) * losses_K, strict=True))
        if learns:
            with torch.no_grad():
                self.weights.clamp_(min=FLOOR).mul_(len(names) / self.weights.sum())
        found = dict(zip(names, self.current_weights() * losses_K, strict=True))
        return found | ({"balanced/gradnorm": self._gradnorm(step, names, losses)} if learns else {})

    def current_weights(self) -> Tensor:
        """Return the weights by which the losses are multiplied now, `[K]`."""
        if self.log_variance is not None:
            return (-self.log_variance.detach()).exp() / 2
        if self.weights is None:
            return _inverse(self.average)
        weights_K = self.weights.detach()
        return weights_K * len(weights_K) / weights_K.sum()

    def _losses(self, step: Step) -> Iterator[tuple[str, Tensor]]:
        """Yield name and reduced loss of each of the K."""
        seen: set[str] = set()
        for part in self.objectives:
            assert isinstance(part, Objective)
            if self.teachers is None:
                said = part(step)
                terms = {
                    next(iter(said)).partition("/")[0]: torch.stack([reduce(loss) for loss in said.values()]).sum()
                }
            else:
                assert isinstance(part, PairwiseObjective)
                student, signals = part.student_of(step), {name: step.signals(name).detach() for name in self.teachers}
                terms = {
                    f"{part.name} to {name}": reduce(part.pair_with(name, student, said, step.batch))
                    for name, said in signals.items()
                }
            for name, loss in terms.items():
                unique = name if name not in seen else f"{name} {len(seen)}"
                seen.add(unique)
                yield f"balanced/{unique}", loss

    def _by_size(self, losses_K: Tensor, learns: bool) -> Tensor:
        """Return the weights of `adaloss`, after the losses count in their running means."""
        now_K = _everywhere(losses_K)
        if learns:
            known = self.average >= 0
            moved_K = self.momentum * self.average + (1 - self.momentum) * now_K
            self.average.copy_(torch.where(known, moved_K, now_K))
        return _inverse(torch.where(self.average >= 0, self.average, now_K))

    def _gradnorm(self, step: Step, names: Sequence[str], losses: Sequence[Tensor]) -> Tensor:
        """Return the loss of the weights; the first call remembers the losses at the start."""
        assert self.weights is not None
        now_K = _everywhere(torch.stack([loss.to(self.weights.dtype) for loss in losses]))
        self.first.copy_(torch.where(self.first >= 0, self.first, now_K))
        shared = _outputs(step.student)
        norms = []
        for name, loss in zip(names, losses, strict=True):
            found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True) if shared else ()
            squares = [part.detach().double().square().sum() for part in found if part is not None]
            if not squares:
                raise ModelError(
                    f"{name}: by 'gradnorm' needs losses that depend on what the student says of the batch; use "
                    "'uncertainty' or 'adaloss' for losses on another input"
                )
            norms.append(torch.stack(squares).sum())
        squared_K = sum_over_processes(torch.stack(norms))
        norms_K = (squared_K.sqrt() / world_size()).to(self.weights.dtype)
        return gradnorm_loss(norms_K, self.weights, now_K / self.first.clamp_min(FLOOR), self.alpha)


def _outputs(student: Signals) -> list[Tensor]:
    """Return all that the student says, where it carries a gradient."""
    named = [student.features, student.embeddings, student.heads]
    tensors = [value for group in named for value in group.values()]
    tensors += [] if student.logits is None else [student.logits]
    return [value for value in tensors if value.requires_grad]


def _everywhere(losses_K: Tensor) -> Tensor:
    """Return the losses of the global batch, detached."""
    return sum_over_processes(losses_K.detach().clone()) / world_size()


def _inverse(average_K: Tensor) -> Tensor:
    inverse_K = 1 / average_K.clamp_min(FLOOR)
    return inverse_K * len(inverse_K) / inverse_K.sum()
