"""Balance losses: the known values, minimum, gradients, weights over time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.routers import Routing, coefficient_of_variation, kl_to_uniform
from moekd.routers.balances import BALANCES, CoefficientOfVariation, KLToUniform
from moekd.schedules import Progress, StepDecay

SKEWED = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
PAIR = torch.tensor([[0.7, 0.3], [0.5, 0.5]])


def of(probs: torch.Tensor) -> Routing:
    return Routing(probs, None, probs.log(), probs)


def test_known_values_of_kl() -> None:
    torch.testing.assert_close(kl_to_uniform(SKEWED), torch.tensor(0.429813), atol=1e-6, rtol=0)
    torch.testing.assert_close(kl_to_uniform(SKEWED, True), torch.tensor(0.107453), atol=1e-6, rtol=0)
    torch.testing.assert_close(kl_to_uniform(PAIR, True), torch.tensor(0.010205), atol=1e-6, rtol=0)
    torch.testing.assert_close(kl_to_uniform(PAIR), torch.tensor(0.020411), atol=1e-6, rtol=0)


def test_known_values_of_the_coefficient_of_variation() -> None:
    torch.testing.assert_close(coefficient_of_variation(SKEWED), torch.tensor(1.2), atol=1e-6, rtol=0)
    torch.testing.assert_close(coefficient_of_variation(PAIR), torch.tensor(0.28284), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 9999))
def test_equal_a_loop(rows: int, teachers: int, seed: int) -> None:
    probs = torch.randn(rows, teachers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)
    mean = [sum(probs[b, t].item() for b in range(rows)) / rows for t in range(teachers)]
    kl = sum((math.log(1 / teachers) - math.log(m)) / teachers for m in mean)
    assert kl_to_uniform(probs).item() == pytest.approx(kl, abs=1e-9)
    assert kl_to_uniform(probs, True).item() == pytest.approx(kl / teachers, abs=1e-9)
    variance = sum((m - 1 / teachers) ** 2 for m in mean) / (teachers - 1)
    assert coefficient_of_variation(probs).item() == pytest.approx(math.sqrt(variance) * teachers, abs=1e-9)
    assert kl >= -1e-9


@pytest.mark.parametrize("loss", [kl_to_uniform, coefficient_of_variation])
def test_zero_loss_and_gradient_at_balance(loss) -> None:
    logits = torch.zeros(3, 4, requires_grad=True)
    value = loss(logits.softmax(1))
    value.backward()
    torch.testing.assert_close(value, torch.zeros(()), atol=1e-7, rtol=0)
    torch.testing.assert_close(logits.grad, torch.zeros(3, 4), atol=1e-7, rtol=0)


@pytest.mark.parametrize("loss", [kl_to_uniform, coefficient_of_variation])
def test_balance_over_the_batch_counts_not_over_a_row(loss) -> None:
    torch.testing.assert_close(loss(torch.eye(4)), torch.zeros(()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [kl_to_uniform, coefficient_of_variation])
def test_one_teacher_and_collapse_stay_finite(loss) -> None:
    logits = torch.zeros(3, 1, requires_grad=True)
    value = loss(logits.softmax(1))
    value.backward()
    assert value == 0.0
    assert torch.equal(logits.grad, torch.zeros(3, 1))
    collapsed = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value = loss(collapsed.softmax(1))
    value.backward()
    assert value.isfinite()
    assert value > 1
    assert collapsed.grad.isfinite().all()


@pytest.mark.parametrize("loss", [kl_to_uniform, lambda p: kl_to_uniform(p, True), coefficient_of_variation])
def test_gradient_in_double_precision(loss) -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x.softmax(1)), (logits,))


def test_half_precision_is_computed_in_float32() -> None:
    assert kl_to_uniform(SKEWED.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(kl_to_uniform(SKEWED.bfloat16()), torch.tensor(0.429813), rtol=0.02, atol=0)


def test_modules_compute_the_functions() -> None:
    assert KLToUniform()(of(SKEWED)) == kl_to_uniform(SKEWED)
    assert KLToUniform(normalize_by_experts=True)(of(SKEWED)) == kl_to_uniform(SKEWED, True)
    assert CoefficientOfVariation()(of(SKEWED)) == coefficient_of_variation(SKEWED)
    assert {"cv", "kl_to_uniform"} <= set(BALANCES.names())


def test_weight_is_a_number_or_a_schedule() -> None:
    assert KLToUniform(0.3).weight_at(Progress(epoch=9)) == 0.3
    assert KLToUniform(StepDecay(1.0, 10, 0.9)).weight_at(Progress(epoch=10)) == pytest.approx(0.9)
