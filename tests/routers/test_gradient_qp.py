"""The smallest mixture of gradients: known values, optimality, the capped simplex."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.objectives import KD
from moekd.routers import Dense, Router
from moekd.routers.gates import GradientQPGate, gradient_weights
from moekd.routers.gates.gradient_qp import mean_gradients
from moekd.routers.simplex import min_norm_weights, project_capped

from ..builders import make_step, strangers

PAIR = torch.tensor([[1.0, 0.0], [0.0, 2.0]])


def test_known_values() -> None:
    torch.testing.assert_close(gradient_weights(PAIR, 1.0), torch.tensor([0.8, 0.2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient_weights(PAIR, 0.6), torch.tensor([0.6, 0.4]), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.floats(0.5, 1), st.integers(0, 9999))
def test_two_teachers_have_a_closed_form(classes: int, cap: float, seed: int) -> None:
    first, second = torch.randn(2, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    difference = first - second
    exact = (-difference @ second / (difference @ difference)).clamp(1 - cap, cap)
    weights = gradient_weights(torch.stack([first, second]), cap)
    torch.testing.assert_close(weights, torch.stack([exact, 1 - exact]), atol=1e-4, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.floats(0.05, 1), st.integers(0, 9999))
def test_feasible_and_nothing_feasible_is_better(teachers: int, classes: int, cap: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    gradients = torch.randn(teachers, classes, generator=rng, dtype=torch.float64)
    gradients = gradients * torch.rand(teachers, 1, generator=rng, dtype=torch.float64) ** 3
    gram, cap = gradients @ gradients.T, max(cap, 1 / teachers)
    weights = min_norm_weights(gram, cap)
    assert weights.sum().item() == pytest.approx(1, abs=1e-9)
    assert weights.min() >= 0
    assert weights.max() <= cap + 1e-9
    slope, left, smallest = gram @ weights, 1.0, 0.0
    for value in slope.sort().values.tolist():
        share = min(cap, left)
        smallest, left = smallest + share * value, left - share
    gap = (weights @ slope).item() - smallest
    assert gap <= 1e-3 * gram.trace().item() + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.floats(0.01, 1), st.floats(0.01, 50), st.integers(0, 9999))
def test_projection_is_the_nearest_feasible_point(teachers: int, cap: float, scale: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    cap = max(cap, 1 / teachers)
    point = torch.randn(teachers, generator=rng, dtype=torch.float64) * scale
    nearest = project_capped(point, cap)
    assert nearest.sum().item() == pytest.approx(1, abs=1e-9)
    assert nearest.min() >= 0
    assert nearest.max() <= cap + 1e-9
    for _ in range(20):
        other = project_capped(torch.randn(teachers, generator=rng, dtype=torch.float64), cap)
        assert ((point - nearest) * (other - nearest)).sum() <= 1e-8 * scale


def test_projection_leaves_feasible_points() -> None:
    point = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(project_capped(point, 0.6), point)
    uniform = torch.full((5,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(project_capped(uniform, 0.2), uniform)


def test_cap_at_the_mean_is_uniform_and_ties_stay_uniform() -> None:
    gradients = torch.randn(4, 6)
    torch.testing.assert_close(gradient_weights(gradients, 0.25), torch.full((4,), 0.25))
    torch.testing.assert_close(gradient_weights(gradients, 0.1), torch.full((4,), 0.25))
    torch.testing.assert_close(gradient_weights(gradients[:1].expand(3, -1), 0.6), torch.full((3,), 1 / 3))
    torch.testing.assert_close(gradient_weights(torch.zeros(3, 6), 0.6), torch.full((3,), 1 / 3))


def test_unit_gradients_ignore_the_scale_in_the_choice() -> None:
    weights = gradient_weights(PAIR, 1.0, unit_gradients=True)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1 / 3]), atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_distillation_loss() -> None:
    step = make_step(strangers(3))
    student = step.student.logits.detach().requires_grad_()
    expected = []
    for name in step.teachers:
        loss = KD(temperature=3.0).pair(type(step.student)(student), step.teachers[name].detach(), {}).mean()
        (gradient,) = torch.autograd.grad(loss, student)
        expected.append(gradient.sum(0))
    actual = mean_gradients(student.detach(), step.teachers.logits.detach(), 3.0)
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_one_vector_for_the_batch() -> None:
    routing = make_step(strangers(3), Router(GradientQPGate(cap=0.7), Dense(), combine="loss")).routing
    assert (routing.weights == routing.weights[0]).all()
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(6))
    assert routing.weights.max() <= 0.7 + 1e-5
