"""What must hold for every router: relations between runs that differ in one thing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.objectives import KD, RoutedKD, kd_kl, mixed_teacher
from moekd.routers import Dense, Router, TopK, UniformGate

from ..builders import clones, make_batch, make_pool, make_router, make_step, strangers

COMBINES = ["select", "loss", "target"]


def routed(pool, router, **options) -> torch.Tensor:
    return RoutedKD()(make_step(pool, router, **options))["routed_kd"]


@pytest.mark.parametrize("combine", ["select", "loss"])
def test_uniform_and_dense_is_the_mean_over_teachers(combine: str) -> None:
    pool = strangers(3)
    mean = KD()(make_step(pool))["kd"]
    torch.testing.assert_close(routed(pool, Router(UniformGate(3), Dense(), combine=combine)), mean)


def test_all_chosen_and_select_is_the_mean_over_teachers() -> None:
    pool = make_pool("fusion", "vectors")
    torch.testing.assert_close(routed(pool, make_router(4, k=4)), KD()(make_step(pool))["kd"])


@pytest.mark.parametrize("combine", ["loss", "target"])
def test_all_chosen_is_dense(combine: str) -> None:
    pool = strangers(3)
    chosen = routed(pool, make_router(3, k=3, combine=combine))
    torch.testing.assert_close(chosen, routed(pool, make_router(3, k=None, combine=combine)))


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("k", [1, 2, None])
def test_permuting_teachers_permutes_weights_and_keeps_the_loss(combine: str, k: int | None) -> None:
    order = [2, 0, 1]
    plain, turned = make_router(3, k=k, combine=combine), make_router(3, k=k, combine=combine)
    with torch.no_grad():
        turned.gate.fc2.weight.copy_(plain.gate.fc2.weight[order])
        turned.gate.fc2.bias.copy_(plain.gate.fc2.bias[order])
    one, other = make_step(strangers(3), plain), make_step(strangers(3, order), turned)
    torch.testing.assert_close(other.routing.weights, one.routing.weights[:, order])
    torch.testing.assert_close(other.routing.applied_weights, one.routing.applied_weights[:, order])
    torch.testing.assert_close(RoutedKD()(other)["routed_kd"], RoutedKD()(one)["routed_kd"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("k", [1, 2, 3, None])
def test_identical_teachers_make_every_router_plain_kd(combine: str, k: int | None) -> None:
    plain = KD("t0")(make_step(clones(3)))["kd"]
    torch.testing.assert_close(routed(clones(3), make_router(3, k=k, combine=combine)), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("k", [1, None])
def test_one_teacher_is_plain_kd(combine: str, k: int | None) -> None:
    pool = strangers(1)
    plain = KD()(make_step(pool))["kd"]
    torch.testing.assert_close(routed(pool, make_router(1, k=k, combine=combine)), plain, rtol=1e-4, atol=1e-4)


def test_equal_scores_send_everyone_to_the_first() -> None:
    pool = strangers(3)
    torch.testing.assert_close(routed(pool, Router(UniformGate(3), TopK(1))), KD("t0")(make_step(pool))["kd"])


def test_rows_are_routed_on_their_own() -> None:
    pool, router, batch = strangers(3), make_router(3, k=2), make_batch(6)
    whole = routed(pool, router, batch=batch)
    for b in range(6):
        row = {key: value[b : b + 1] for key, value in batch.items()}
        torch.testing.assert_close(routed(pool, router, batch=row), whole[b : b + 1], rtol=1e-4, atol=1e-4)


def test_select_is_the_mean_over_the_chosen_by_a_loop() -> None:
    pool, router = make_pool("fusion", "vectors"), make_router(4, k=2)
    step = make_step(pool, router)
    loss = RoutedKD()(step)["routed_kd"]
    scores, student, teachers = step.routing.logits, step.student.logits, pool(step.batch)
    for b in range(6):
        best = sorted(range(4), key=lambda t: -scores[b, t].item())[:2]
        terms = [kd_kl(student[b : b + 1], teachers[pool.experts[t]].logits[b : b + 1], 4.0)[0] for t in best]
        torch.testing.assert_close(loss[b], torch.stack(terms).mean())


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(2, 5), st.floats(0.5, 8), st.floats(0.1, 8), st.integers(0, 9999)
)
def test_mixed_probabilities_cost_at_most_the_mixed_losses(
    rows: int, teachers: int, classes: int, temperature: float, scale: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, classes, generator=rng, dtype=torch.float64) * scale
    logits = torch.randn(rows, teachers, classes, generator=rng, dtype=torch.float64) * scale
    weights = torch.randn(rows, teachers, generator=rng, dtype=torch.float64).softmax(1)
    target = kd_kl(student, mixed_teacher(logits, weights, "probs", temperature).require_logits("x"), temperature)
    losses = torch.stack([kd_kl(student, logits[:, t], temperature) for t in range(teachers)], dim=1)
    assert (target <= (weights * losses).sum(1) + 1e-9).all()
