"""The gradient of a router by the student's held-out loss after its next step.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import ConfigError
from ..model import Batch, Model
from ..objectives import CrossEntropy, reduce
from ..routers import Routing
from ..schedules import Progress
from ..signals import PoolSignals
from ..step import Step
from .hypergradient import Order, Parameters, hypergradient
from .training_step import TrainingStep, WeightedObjective
from .untouched import same_random_numbers

#: What a step knows about the teachers, by the names of its lazy attributes.
_TEACHERS = ("_planned", "_extras", "teachers", "expert_signals")


class OuterStep(NamedTuple):
    """Attributes.

    loss: the held-out loss after the student's step, of this process.
    gradients: of the router's parameters, in their order, of this process.
    teachers: what the planned teachers said about the batch; None if they ran in another way.
    """

    loss: Tensor
    gradients: list[Tensor]
    teachers: PoolSignals | None


def router_gradients(
    module: TrainingStep, batch: Batch, held_out: Batch, progress: Progress, lr: float, order: Order
) -> OuterStep:
    """Return the gradients of the router's parameters.

    The weights over teachers and label are constants for the student, so the chain is: held-out loss -> weights
    (`hypergradient`) -> router. The balance losses are added. Buffers may change; the caller puts them back.

    Args:
        module: student, teachers, router and objectives.
        batch: what the student's next step trains on.
        held_out: a batch with labels.
        progress: how far the stage is.
        lr: step size of the unrolled step.
        order: how the step is differentiated.

    Raises:
        ConfigError: nothing of the routing depends on the router's parameters.
    """
    step = Step(batch, module.models, progress, True, module.variants, module.features, module.cache)
    routing, _ = step.routing, step.expert_signals
    leaves = [value.detach().requires_grad_() for value in _weights(routing)]
    fixed = replace(
        routing,
        weights=leaves[0],
        label_weights=leaves[1] if len(leaves) > 1 else None,
        losses={},
        hypothetical=True,
    )
    student = module.models.student
    parameters: Parameters = {name: value for name, value in student.named_parameters() if value.requires_grad}

    def inner(theta: Parameters) -> Tensor:
        with same_random_numbers(leaves[0].device):
            return _at(student, theta, lambda: _loss(module, _again(step, fixed), progress))

    def outer(theta: Parameters) -> Tensor:
        return _at(student, theta, lambda: _held_out_loss(module, held_out))

    loss, slopes = hypergradient(inner, outer, parameters, leaves, lr, order)
    ends = [(value, slope) for value, slope in zip(_weights(routing), slopes, strict=True) if value.requires_grad]
    ends += [(value, torch.ones_like(value)) for value in routing.losses.values() if value.requires_grad]
    if not ends or module.router is None:
        raise ConfigError("the router's weights do not depend on its parameters: signal 'bilevel' trains nothing")
    values, directions = zip(*ends, strict=True)
    gradients = torch.autograd.grad(
        values, list(module.router.parameters()), directions, allow_unused=True, materialize_grads=True
    )
    return OuterStep(loss, list(gradients), vars(step).get("_planned"))


def _weights(routing: Routing) -> list[Tensor]:
    return [routing.weights] if routing.label_weights is None else [routing.weights, routing.label_weights]


def _again(step: Step, routing: Routing) -> Step:
    """Return a step on the same batch with the same teacher signals and a given routing."""
    twin = Step(step.batch, step.models, step.progress, step.training, step._variants, step.features, step.cache)
    vars(twin).update({name: vars(step)[name] for name in _TEACHERS if name in vars(step)})
    vars(twin)["routing"] = routing
    return twin


def _loss(module: TrainingStep, step: Step, progress: Progress) -> Tensor:
    total = torch.zeros((), device=step.routing.weights.device)
    for weighted in module.objectives:
        assert isinstance(weighted, WeightedObjective)
        weight = weighted.weight_at(progress)
        total = total + sum((weight * value for value in weighted.terms(step).values()), torch.zeros_like(total))
    return total


def _held_out_loss(module: TrainingStep, held_out: Batch) -> Tensor:
    student, mode = module.models.student, module.models.student.training
    student.eval()
    try:
        losses = CrossEntropy()(Step(held_out, module.models, training=False, variants=[]))
        return reduce(losses["cross_entropy/student"])
    finally:
        student.train(mode)


class _Call(nn.Module):
    """Calls a function that uses a student, so that `functional_call` can replace its parameters meanwhile."""

    def __init__(self, student: Model, function: Callable[[], Tensor]) -> None:
        super().__init__()
        self.student, self.function = student, function

    def forward(self) -> Tensor:
        return self.function()


def _at(student: Model, parameters: Parameters, function: Callable[[], Tensor]) -> Tensor:
    """Return the value of a function while the student has other parameters."""
    named = {f"student.{name}": value for name, value in parameters.items()}
    value: Tensor = functional_call(_Call(student, function), named, ())
    return value
