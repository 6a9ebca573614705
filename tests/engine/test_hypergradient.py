"""The gradient through one step: against autograd through the whole step, finite differences, the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekd.stages.hypergradient import Parameters, hypergradient


class Problem:
    """A student of one linear layer, weighed distillation and cross-entropy on two rows, held-out rows."""

    def __init__(self, seed: int = 0, rows: int = 2, classes: int = 3) -> None:
        rng = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
        self.x, self.teacher, self.val = draw(rows, 4), draw(rows, classes), draw(5, 4)
        self.y, self.y_val = torch.arange(rows) % classes, torch.arange(5) % classes
        self.parameters = {"weight": draw(classes, 4), "bias": draw(classes)}
        self.alpha = torch.rand(rows, generator=rng, dtype=torch.float64).requires_grad_()
        self.calls = 0

    def terms(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        logits = self.x @ parameters["weight"].T + parameters["bias"]
        log_probs, target = (logits / 1.5).log_softmax(1), (self.teacher / 1.5).softmax(1)
        kd = 2.25 * (target * (target.log() - log_probs)).sum(1)
        return kd, torch.nn.functional.cross_entropy(logits, self.y, reduction="none")

    def inner(self, parameters: Parameters) -> Tensor:
        self.calls += 1
        kd, ce = self.terms(parameters)
        return (self.alpha * kd + (1 - self.alpha) * ce).mean()

    def outer(self, parameters: Parameters) -> Tensor:
        logits = self.val @ parameters["weight"].T + parameters["bias"]
        return torch.nn.functional.cross_entropy(logits, self.y_val)

    def through_everything(self, lr: float) -> Tensor:
        theta = {name: value.clone().requires_grad_() for name, value in self.parameters.items()}
        slopes = torch.autograd.grad(self.inner(theta), list(theta.values()), create_graph=True)
        moved = {name: value - lr * slope for (name, value), slope in zip(theta.items(), slopes, strict=True)}
        return torch.autograd.grad(self.outer(moved), self.alpha)[0]

    def by_the_formula(self, lr: float) -> Tensor:
        theta = {name: value.clone().requires_grad_() for name, value in self.parameters.items()}
        names = list(theta.values())
        slopes = torch.autograd.grad(self.inner(theta), names)
        moved = {n: (v - lr * s).detach().requires_grad_() for (n, v), s in zip(theta.items(), slopes, strict=True)}
        wanted = torch.autograd.grad(self.outer(moved), list(moved.values()))
        found = []
        for b in range(len(self.y)):
            kd, ce = self.terms(theta)
            row = torch.autograd.grad(kd[b] - ce[b], names)
            found.append(-lr / len(self.y) * sum((w * r).sum() for w, r in zip(wanted, row, strict=True)))
        return torch.stack(found)


def solve(problem: Problem, lr: float = 0.3, order: str = "unroll") -> Tensor:
    found = hypergradient(problem.inner, problem.outer, problem.parameters, [problem.alpha], lr, order)  # type: ignore[arg-type]
    return found.gradients[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 6), st.integers(2, 5), st.floats(0.01, 2.0))
def test_it_is_autograd_through_the_step_and_the_formula(seed: int, rows: int, classes: int, lr: float) -> None:
    problem = Problem(seed, rows, classes)
    found = solve(problem, lr)
    torch.testing.assert_close(found, problem.through_everything(lr), rtol=0, atol=1e-8)
    torch.testing.assert_close(found, problem.by_the_formula(lr), rtol=0, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999))
def test_differences_come_close(seed: int) -> None:
    exact = solve(Problem(seed))
    torch.testing.assert_close(
        solve(Problem(seed), order="darts"), exact, rtol=1e-3, atol=1e-5 * float(exact.abs().max()) + 1e-12
    )


def test_it_predicts_what_another_weight_leads_to() -> None:
    problem, lr, step = Problem(), 0.3, 1e-5
    found = solve(problem, lr)
    for b in range(2):
        losses = []
        for sign in (1, -1):
            moved = Problem()
            with torch.no_grad():
                moved.alpha[b] += sign * step
            result = hypergradient(moved.inner, moved.outer, moved.parameters, [moved.alpha], lr)
            losses.append(result.loss.item())
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(found[b].item(), abs=1e-9)


@pytest.mark.parametrize("order", ["unroll", "darts"])
def test_a_step_of_length_zero_has_no_gradient(order: str) -> None:
    assert torch.equal(solve(Problem(), 0.0, order), torch.zeros(2, dtype=torch.float64))


def test_a_weight_that_nothing_reads_has_a_zero_gradient() -> None:
    problem, other = Problem(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    for order in ("unroll", "darts"):
        found = hypergradient(problem.inner, problem.outer, problem.parameters, [other], 0.1, order)  # type: ignore[arg-type]
        assert torch.equal(found.gradients[0], torch.zeros(3, dtype=torch.float64))


def test_an_outer_loss_that_ignores_the_student_has_a_zero_gradient() -> None:
    problem = Problem()
    for order in ("unroll", "darts"):
        found = hypergradient(
            problem.inner,
            lambda _: torch.zeros(()),
            problem.parameters,
            [problem.alpha],
            0.1,
            order,  # type: ignore[arg-type]
        )
        assert not found.gradients[0].any()


def test_the_parameters_stay_and_get_no_gradient() -> None:
    problem = Problem()
    before = {name: value.clone() for name, value in problem.parameters.items()}
    for value in problem.parameters.values():
        value.requires_grad_()
    solve(problem)
    assert all(torch.equal(problem.parameters[name], value) for name, value in before.items())
    assert all(value.grad is None for value in problem.parameters.values())
    assert problem.alpha.grad is None
