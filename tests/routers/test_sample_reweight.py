"""Weights by the disagreement with an adapted teacher."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError
from moekd.objectives import KD, RoutedKD
from moekd.routers import Dense, Router
from moekd.routers.gates import SampleReweightGate
from moekd.routers.gates.sample_reweight import jensen_shannon

from ..builders import clones, make_step, strangers


def weights(pool, adapted: int | None = None, tau: float = 0.2) -> torch.Tensor:
    gate = SampleReweightGate(len(pool.names), adapted, tau)
    return make_step(pool, Router(gate, Dense(), combine="loss", signal="none")).routing.weights


def test_identical_teachers_are_equal_and_the_loss_is_plain() -> None:
    pool = clones(2)
    torch.testing.assert_close(weights(pool), torch.full((6, 2), 0.5))
    router = Router(SampleReweightGate(2), Dense(), combine="loss", signal="none")
    torch.testing.assert_close(RoutedKD()(make_step(pool, router))["routed_kd"], KD("t0")(make_step(pool))["kd"])


def test_swapping_the_teachers_swaps_the_weights() -> None:
    torch.testing.assert_close(weights(strangers(2), 1), weights(strangers(2, [1, 0]), 0).flip(1))


def test_two_teachers_by_a_loop() -> None:
    pool = strangers(2)
    batch = make_step(pool).batch
    found = weights(pool, tau=0.3)
    for b in range(6):
        p, q = (pool(batch)[name].logits[b].softmax(0) for name in pool.names)
        middle = (p + q) / 2
        distance = 0.5 * (p * (p / middle).log()).sum() + 0.5 * (q * (q / middle).log()).sum()
        torch.testing.assert_close(found[b, 1], torch.sigmoid(distance / 0.3))
    torch.testing.assert_close(weights(pool), weights(pool, 1))


def test_one_teacher_has_all_weight() -> None:
    assert torch.equal(weights(strangers(1)), torch.ones(6, 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.data(), st.floats(0.01, 5))
def test_rows_sum_to_one_and_the_adapted_one_never_falls_below_its_share(
    teachers: int, data: st.DataObject, tau: float
) -> None:
    adapted = data.draw(st.integers(0, teachers - 1))
    found = weights(strangers(teachers), adapted, tau)
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    assert (found[:, adapted] >= 1 / teachers - 1e-6).all()


def test_the_divergence_of_opposites_is_ln_two() -> None:
    p = torch.tensor([[1.0, 0.0]])
    assert jensen_shannon(p, p.flip(1)).item() == pytest.approx(math.log(2))
    assert jensen_shannon(p, p).item() == 0


def test_refused() -> None:
    for options in ({"adapted": 2}, {"tau": 0.0}):
        with pytest.raises(ConfigError, match=r"adapted is one of the 2 teachers, counted from 0, and tau > 0"):
            SampleReweightGate(2, **options)
