"""How a loss after a gradient step depends on the weights of the loss that the step went down.

Inner loss L(theta; w) with weights w, step theta' = theta - lr dL/dtheta, outer loss F(theta'):

    dF/dw = -lr < dF/dtheta', d/dw dL/dtheta >

One step of unrolled bilevel optimisation, as in Franceschi et al., "Bilevel Programming for Hyperparameter Optimization
and Meta-Learning", ICML 2018, arXiv 1806.04910; the finite differences are those of Liu, Simonyan and Yang, "DARTS:
Differentiable Architecture Search", ICLR 2019, arXiv 1806.09055.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..distributed import sum_over_processes, world_size
from ..errors import ModelError

Order = Literal["unroll", "darts"]
Parameters = dict[str, Tensor]
#: Length of the step by which `darts` moves the parameters to either side.
RADIUS = 0.01


class Hypergradient(NamedTuple):
    """What one inner step led to.

    Attributes:
        loss: the outer loss after the inner step, of this process.
        gradients: its gradient by each of the weights, of this process: the mean over the processes is the gradient.
    """

    loss: Tensor
    gradients: list[Tensor]


def hypergradient(
    inner: Callable[[Parameters], Tensor],
    outer: Callable[[Parameters], Tensor],
    parameters: Parameters,
    weights: Sequence[Tensor],
    lr: float,
    order: Order = "unroll",
) -> Hypergradient:
    """Return the gradient of the outer loss after one step down the inner loss, by the weights of the inner loss.

    Args:
        inner: the inner loss at given parameters; it reads `weights`. Must give the same value each time it is called.
        outer: the outer loss at given parameters.
        parameters: where the step starts, by name.
        weights: leaves of autograd.
        lr: length of the inner step per unit of gradient.
        order: `unroll` differentiates through the step, exactly; `darts` takes central finite differences, exact up to
            the square of a small step, and never needs a second derivative.

    Raises:
        ModelError: with `unroll`, a network without second derivatives.
    """
    theta = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    slopes = _gradients(inner(theta), theta.values(), create_graph=order == "unroll")
    steps = averaged(slope.detach() for slope in slopes)
    moved = {name: (theta[name].detach() - lr * step).requires_grad_() for name, step in zip(theta, steps, strict=True)}
    loss = outer(moved)
    wanted = averaged(_gradients(loss, moved.values()))
    if order == "unroll":
        found = _through_the_step(slopes, wanted, weights)
    else:
        found = _by_differences(inner, theta, wanted, weights)
    return Hypergradient(loss.detach(), [-lr * gradient for gradient in found])


def averaged(values: Iterable[Tensor]) -> list[Tensor]:
    """Return the means over the processes."""
    return [sum_over_processes(value.clone()) / world_size() for value in values]


def _through_the_step(
    slopes: Sequence[Tensor], wanted: Sequence[Tensor], weights: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return `d/dw <wanted, slopes(w)>`."""
    product = torch.stack([(slope * want).sum() for slope, want in zip(slopes, wanted, strict=True)]).sum()
    try:
        return _gradients(product, weights)
    except RuntimeError as error:
        raise ModelError(
            f"the student can't be differentiated twice ({error}); use order 'darts' in the bilevel stage"
        ) from error


def _by_differences(
    inner: Callable[[Parameters], Tensor], theta: Parameters, wanted: Sequence[Tensor], weights: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return the same by central differences along `wanted`."""
    length = torch.stack([want.square().sum() for want in wanted]).sum().sqrt()
    scale = RADIUS / length.clamp_min(torch.finfo(length.dtype).tiny)
    sides = []
    for sign in (scale, -scale):
        there = {name: theta[name].detach() + sign * want for name, want in zip(theta, wanted, strict=True)}
        sides.append(_gradients(inner(there), weights))
    return [length * (plus - minus) / (2 * RADIUS) for plus, minus in zip(*sides, strict=True)]


def _gradients(loss: Tensor, inputs: Iterable[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    """Return the gradients of a loss, zeros where it does not depend on an input."""
    wanted = list(inputs)
    if not loss.requires_grad:
        return [torch.zeros_like(value) for value in wanted]
    return torch.autograd.grad(loss, wanted, create_graph=create_graph, allow_unused=True, materialize_grads=True)
