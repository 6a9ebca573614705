"""Importance, load, Switch balance, z-loss, entropy, routing contrast: known values, loops, masks, extremes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekd.errors import ConfigError, ModelError
from moekd.routers import BALANCES, Routing, coefficient_of_variation, kl_to_uniform
from moekd.routers.balances import (
    CoefficientOfVariation,
    Entropy,
    Importance,
    Load,
    RoutingContrastive,
    SwitchBalance,
    ZLoss,
    cv_squared,
    mean_entropy,
    routing_contrastive,
    switch_balance,
    z_loss,
)

ROWS = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])


def best(probs: Tensor, k: int) -> Tensor:
    return probs.sort(dim=1, descending=True, stable=True).indices[:, :k]


def draw(rows: int, teachers: int, seed: int) -> Tensor:
    return torch.randn(rows, teachers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(probs: Tensor, chosen: Tensor | None = None, **options) -> Routing:
    return Routing(probs, chosen, probs.log(), probs, **options)


def test_known_values_of_the_switch_balance() -> None:
    torch.testing.assert_close(switch_balance(ROWS, best(ROWS, 1)), torch.tensor(1.15))
    torch.testing.assert_close(switch_balance(ROWS, best(ROWS, 2)), torch.tensor(2.0))
    torch.testing.assert_close(switch_balance(ROWS, best(ROWS, 2), "first"), torch.tensor(1.15))
    torch.testing.assert_close(switch_balance(ROWS, best(ROWS, 2), normalise_by_k=True), torch.tensor(1.0))
    collapsed = torch.tensor([[1.0, 0.0]] * 3)
    torch.testing.assert_close(switch_balance(collapsed, best(collapsed, 1)), torch.tensor(2.0))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9999))
def test_switch_balance_equals_a_loop(rows: int, teachers: int, k: int, seed: int) -> None:
    k = min(k, teachers)
    probs = draw(rows, teachers, seed).softmax(1)
    chosen = best(probs, k)
    for choices, picked in (("all", chosen), ("first", chosen[:, :1])):
        total = 0.0
        for t in range(teachers):
            share = sum(t in picked[b].tolist() for b in range(rows)) / rows
            total += share * probs[:, t].mean().item()
        assert switch_balance(probs, chosen, choices).item() == pytest.approx(teachers * total)
        scaled = switch_balance(probs, chosen, choices, normalise_by_k=True).item()
        assert scaled == pytest.approx(teachers * total / picked.shape[1])


def test_the_minimum_of_the_switch_balance_is_k() -> None:
    even = torch.full((4, 4), 0.25)
    chosen = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    torch.testing.assert_close(switch_balance(even, chosen), torch.tensor(2.0))
    torch.testing.assert_close(switch_balance(even, chosen, normalise_by_k=True), torch.tensor(1.0))


def test_switch_balance_pushes_down_the_busy_teacher() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    switch_balance(logits.softmax(1), torch.tensor([[1], [1], [1], [0]])).backward()
    assert (logits.grad[:, 1] > 0).all()
    assert (logits.grad[:, 2] < 0).all()


def test_empty_places_are_not_counted() -> None:
    chosen = torch.tensor([[0, -1], [1, 0], [1, -1], [0, -1]])
    expected = 2 * (3 / 4 * ROWS[:, 0].mean() + 2 / 4 * ROWS[:, 1].mean())
    torch.testing.assert_close(switch_balance(ROWS, chosen), expected)


def test_known_values_of_the_squared_coefficient_of_variation() -> None:
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(cv_squared(skewed), torch.tensor(1.44))
    torch.testing.assert_close(cv_squared(skewed, unbiased=False), torch.tensor(1.08))
    pair = torch.tensor([[0.7, 0.3], [0.5, 0.5]])
    torch.testing.assert_close(cv_squared(pair), torch.tensor(0.08))
    torch.testing.assert_close(cv_squared(pair), coefficient_of_variation(pair).square())


def test_cv_squared_or_biased() -> None:
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    values = {(False, True): 1.2, (False, False): math.sqrt(1.08), (True, True): 1.44, (True, False): 1.08}
    for (squared, unbiased), value in values.items():
        balance = CoefficientOfVariation(squared=squared, unbiased=unbiased)
        torch.testing.assert_close(balance(of(skewed)), torch.tensor(value))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 6), st.floats(0.1, 10), st.integers(0, 9999))
def test_importance_knows_neither_scale_nor_order(rows: int, teachers: int, scale: float, seed: int) -> None:
    weights = draw(rows, teachers, seed).softmax(1)
    torch.testing.assert_close(cv_squared(scale * weights), cv_squared(weights))
    torch.testing.assert_close(cv_squared(weights.flip(1)), cv_squared(weights))
    torch.testing.assert_close(cv_squared(torch.cat([weights, weights])), cv_squared(weights))


def test_importance_reads_the_weights_and_load_the_smooth_load() -> None:
    weights, load = torch.tensor([[1.0, 0.0], [0.7, 0.3]]), torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    routing = Routing(weights, None, ROWS[:2], ROWS[:2], details={"load": load})
    assert Importance()(routing) == cv_squared(weights)
    assert Importance(unbiased=False)(routing) == cv_squared(weights, False)
    assert Load()(routing) == cv_squared(load)


def test_known_value_of_the_z_loss() -> None:
    torch.testing.assert_close(z_loss(torch.zeros(3, 4)), torch.tensor(math.log(4) ** 2))
    assert z_loss(torch.zeros(1, 4)).item() == pytest.approx(1.92181, abs=1e-5)
    assert z_loss(torch.full((2, 3), -math.log(3))).item() == pytest.approx(0, abs=1e-6)


def test_entropy_is_a_mean_over_rows_in_nats() -> None:
    assert mean_entropy(torch.full((2, 4), 0.25)).item() == pytest.approx(math.log(4))
    assert mean_entropy(torch.eye(4)).item() == 0.0
    one = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    both = mean_entropy(torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]))
    assert both.item() == pytest.approx((one + math.log(3)) / 2, abs=1e-6)


def contrast_by_a_loop(x: Tensor, prototypes: Tensor, chosen: Tensor, temperature: float) -> float:
    means = {}
    for t in range(len(prototypes)):
        rows = [b for b in range(len(x)) if t in chosen[b].tolist()]
        if rows:
            means[t] = torch.stack([x[b] for b in rows]).mean(0)
    if len(means) < 2:
        return 0.0
    loss = 0.0
    for own in means:
        cosines = [torch.cosine_similarity(prototypes[own], means[t], dim=0).item() / temperature for t in means]
        loss += math.log(sum(map(math.exp, cosines))) - cosines[list(means).index(own)]
    return loss / len(means)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3), st.integers(2, 4), st.integers(0, 9999))
def test_routing_contrast_equals_a_loop(rows: int, teachers: int, k: int, width: int, seed: int) -> None:
    k = min(k, teachers)
    x, prototypes = draw(rows, width, seed), draw(teachers, width, seed + 1)
    chosen = best(draw(rows, teachers, seed + 2), k)
    expected = contrast_by_a_loop(x, prototypes, chosen, 0.2)
    assert routing_contrastive(x, prototypes, chosen, 0.2).item() == pytest.approx(expected, abs=1e-8)


def test_routing_contrast_known_value_and_gradients() -> None:
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0]], requires_grad=True)
    prototypes = torch.eye(2, requires_grad=True)
    loss = routing_contrastive(x, prototypes, torch.tensor([[0], [1]]), 0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    loss.backward()
    assert prototypes.grad.abs().sum() > 0
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("chosen", [[[0], [0]], [[-1], [-1]], [[2], [-1]]])
def test_routing_contrast_with_fewer_than_two_active_prototypes_is_zero(chosen: list[list[int]]) -> None:
    x, prototypes = torch.zeros(2, 2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    loss = routing_contrastive(x, prototypes, torch.tensor(chosen))
    loss.backward()
    assert loss == 0.0
    assert torch.equal(x.grad, torch.zeros(2, 2))
    assert prototypes.grad.isfinite().all()


LOSSES = {
    "kl": lambda p, c, x, m: kl_to_uniform(p, mask_B=m),
    "cv": lambda p, c, x, m: coefficient_of_variation(p, m),
    "cv_squared": lambda p, c, x, m: cv_squared(p, mask_B=m),
    "switch": lambda p, c, x, m: switch_balance(p, c, mask_B=m),
    "z_loss": lambda p, c, x, m: z_loss(x, m),
    "entropy": lambda p, c, x, m: mean_entropy(p, m),
    "contrast": lambda p, c, x, m: routing_contrastive(x, torch.eye(3, dtype=x.dtype), c, mask_B=m),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows", [[0, 2, 3], [1], []])
def test_masked_rows_change_nothing(name: str, rows: list[int]) -> None:
    x = draw(5, 3, 1).requires_grad_(True)
    mask = torch.zeros(5, dtype=torch.bool).index_fill(0, torch.tensor(rows, dtype=torch.long), True)
    probs = x.softmax(1)
    loss = LOSSES[name](probs, best(probs, 2), x, mask)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    assert torch.equal(x.grad[~mask], torch.zeros_like(x.grad[~mask]))
    if rows:
        alone = LOSSES[name](probs[rows], best(probs, 2)[rows], x[rows], None)
        torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_in_double_precision(name: str) -> None:
    x = draw(5, 3, 3).requires_grad_(True)
    chosen = best(x.detach(), 2)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x.softmax(1), chosen, x, None), (x,))


@pytest.mark.parametrize("name", LOSSES)
def test_saturated_scores_have_finite_gradients(name: str) -> None:
    x = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss = LOSSES[name](x.softmax(1), best(x, 1), x, None)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_one_teacher_has_no_imbalance() -> None:
    probs = torch.ones(3, 1)
    assert cv_squared(probs) == 0
    assert mean_entropy(probs) == 0
    assert switch_balance(probs, torch.zeros(3, 1, dtype=torch.long)) == 1


def test_modules_compute_the_functions() -> None:
    chosen = best(ROWS, 2)
    assert SwitchBalance()(of(ROWS, chosen)) == switch_balance(ROWS, chosen)
    assert SwitchBalance(choices="first")(of(ROWS, chosen)) == switch_balance(ROWS, chosen, "first")
    assert SwitchBalance(normalise_by_k=True)(of(ROWS, chosen)) == switch_balance(ROWS, chosen, "all", True)
    assert ZLoss()(of(ROWS)) == z_loss(ROWS.log())
    assert Entropy(-0.1)(of(ROWS)) == mean_entropy(ROWS)
    details = {"input": ROWS, "prototypes": torch.eye(2)}
    expected = routing_contrastive(ROWS, torch.eye(2), chosen[:, :1], 0.5)
    assert RoutingContrastive(temperature=0.5)(of(ROWS, chosen[:, :1], details=details)) == expected
    wanted = {"entropy", "importance", "load", "routing_contrastive", "switch", "z_loss"}
    assert wanted <= set(BALANCES.names())


def test_a_mask_reaches_the_modules() -> None:
    mask = torch.tensor([True, False, True, False])
    chosen = best(ROWS, 1)
    details = {"load": ROWS, "input": ROWS, "prototypes": torch.eye(2)}
    whole = of(ROWS, chosen, details=details, mask=mask)
    part = of(ROWS[mask], chosen[mask], details=details | {"load": ROWS[mask], "input": ROWS[mask]})
    for balance in (SwitchBalance(), ZLoss(), Entropy(), Importance(), Load(), RoutingContrastive()):
        torch.testing.assert_close(balance(whole), balance(part))


def test_losses_say_what_they_need() -> None:
    with pytest.raises(ModelError, match="'load' needs the selection 'noisy_top_k'"):
        Load()(of(ROWS))
    with pytest.raises(ModelError, match="'switch' counts choices, but this selection uses all teachers"):
        SwitchBalance()(of(ROWS))
    with pytest.raises(ModelError, match="'routing_contrastive' needs the gate 'prototype'"):
        RoutingContrastive()(of(ROWS, best(ROWS, 1)))
    with pytest.raises(ConfigError, match="temperature must be above 0"):
        RoutingContrastive(temperature=0)


@pytest.mark.parametrize(("rows", "teachers", "k"), [(6, 4, 1), (7, 5, 2), (5, 3, 3)])
def test_equal_the_functions_of_transformers(rows: int, teachers: int, k: int) -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    logits = draw(rows, teachers, k).float()
    probs, mask = logits.softmax(1), torch.arange(rows) % 3 != 1
    chosen = best(probs, k)
    expected = mixtral.load_balancing_loss_func((logits,), teachers, k)
    torch.testing.assert_close(switch_balance(probs, chosen), expected)
    expected = mixtral.load_balancing_loss_func((logits,), teachers, k, mask[None].long())
    torch.testing.assert_close(switch_balance(probs, chosen, mask_B=mask), expected)
    expected = switch.load_balancing_loss_func(probs[None], chosen[None, :, :1])
    torch.testing.assert_close(switch_balance(probs, chosen, "first"), expected)
    torch.testing.assert_close(z_loss(logits), switch.router_z_loss_func(logits[None]))
