"""Schedules: the published table, ends and middles, errors."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd.schedules import SCHEDULES, Constant, Cosine, Exponential, Linear, Progress, StepDecay, Warmup


@pytest.mark.parametrize(
    ("every", "gamma", "table"),
    [
        (10, 0.9, {0: 1.0, 1: 0.9, 10: 0.9, 11: 0.81, 20: 0.81, 31: 0.6561, 40: 0.6561, 91: 0.3487, 99: 0.3487}),
        (30, 0.5, {0: 1.0, 1: 0.5, 30: 0.5, 31: 0.25, 60: 0.25, 61: 0.125, 90: 0.125, 91: 0.0625, 99: 0.0625}),
    ],
)
def test_weights_of_the_released_code(every: int, gamma: float, table: dict[int, float]) -> None:
    schedule = StepDecay(1.0, every, gamma, first_epoch_decay=True)
    for epoch, value in table.items():
        assert schedule(Progress(epoch)) == pytest.approx(value, abs=5e-5), epoch


@pytest.mark.parametrize("first_epoch_decay", [False, True])
@pytest.mark.parametrize(("every", "gamma"), [(10, 0.9), (30, 0.5), (1, 0.5)])
def test_equals_the_loop_over_epochs(every: int, gamma: float, first_epoch_decay: bool) -> None:
    schedule, weight = StepDecay(2.0, every, gamma, first_epoch_decay), 2.0
    for epoch in range(100):
        assert schedule(Progress(epoch)) == pytest.approx(weight)
        if (epoch if first_epoch_decay else epoch + 1) % every == 0:
            weight *= gamma


def test_exponential_divides_by_equal_factors() -> None:
    schedule = Exponential(4.0, 0.25)
    assert [schedule(Progress(fraction=f)) for f in (0.0, 0.25, 0.5, 0.75, 1.0)] == [4.0, 2.0, 1.0, 0.5, 0.25]
    for start, end in ((0.0, 1.0), (1.0, 0.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="start and end must be above 0"):
            Exponential(start, end)


def test_default_drops_after_full_periods() -> None:
    schedule = StepDecay()
    assert [schedule(Progress(e)) for e in (0, 29, 30, 59, 60, 99)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.125]


def test_constant() -> None:
    assert Constant(0.3)(Progress(7, 0.9)) == 0.3


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1))
def test_linear_and_cosine_go_from_start_to_end(start: float, end: float, fraction: float) -> None:
    for schedule in (Linear(start, end), Cosine(start, end)):
        assert schedule(Progress(0, 0.0)) == pytest.approx(start, abs=1e-9)
        assert schedule(Progress(9, 1.0)) == pytest.approx(end, abs=1e-9)
        assert schedule(Progress(5, 0.5)) == pytest.approx((start + end) / 2, abs=1e-9)
        assert min(start, end) - 1e-9 <= schedule(Progress(3, fraction)) <= max(start, end) + 1e-9


def test_cosine_at_a_quarter() -> None:
    assert Cosine(1.0, 0.0)(Progress(0, 0.25)) == pytest.approx(0.5 + math.sqrt(2) / 4)


def test_warmup_rises_then_stays() -> None:
    schedule = Warmup(2.0, share=0.2)
    assert [schedule(Progress(0, f)) for f in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 1.0, 2.0, 2.0, 2.0])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="every must be at least 1 epoch, found 0"):
        StepDecay(every=0)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
            Warmup(share=share)


def test_registered() -> None:
    assert SCHEDULES.names() == ["constant", "cosine", "exponential", "linear", "step_decay", "warmup"]
