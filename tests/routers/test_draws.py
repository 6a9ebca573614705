"""Random numbers of samples and steps: uniform, repeatable, the same for any number of processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.routers.draws import SampleDraws, uniform

from ..builders import make_batch, make_step, strangers


def reference(sample: int, column: int, seed: int, count: int) -> float:
    """The same number by Python's own integers."""
    whole, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & whole
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & whole
        return value ^ (value >> 31)

    state = mix((seed + golden) & whole)
    for part in (count, sample, column + 1):
        state = mix((state + part * golden) & whole)
    return (state >> 40) / 2**24


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 10**6))
def test_equal_the_same_in_plain_integers(sample: int, columns: int, seed: int, count: int) -> None:
    drawn = uniform(torch.tensor([sample]), columns, seed, torch.tensor(count))
    assert drawn[0].tolist() == [reference(sample, column, seed, count) for column in range(columns)]


@pytest.mark.parametrize(("seed", "count"), [(0, 0), (0, 1), (1, 0), (7, 123)])
def test_uniform_and_uncorrelated(seed: int, count: int) -> None:
    drawn = uniform(torch.arange(40_000), 4, seed, torch.tensor(count)).double()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    histogram = torch.histc(drawn, 16, 0, 1) / drawn.numel()
    assert (histogram - 1 / 16).abs().max() < 0.003
    following = uniform(torch.arange(40_000), 4, seed, torch.tensor(count + 1)).double()
    columns = torch.cat([drawn, following, drawn.roll(1, 0)], dim=1)
    correlation = torch.corrcoef(columns.T) - torch.eye(12, dtype=torch.float64)
    assert correlation.abs().max() < 0.025


def test_rows_do_not_depend_on_their_company() -> None:
    whole = uniform(torch.arange(10), 3, 0, torch.tensor(5))
    assert torch.equal(torch.cat([uniform(torch.arange(i, 10, 2), 3, 0, torch.tensor(5)) for i in (0, 1)]),
                       torch.cat([whole[0::2], whole[1::2]]))  # fmt: skip


def test_state_is_one_number_and_resumes_exactly() -> None:
    draws, batch = SampleDraws(3), make_batch(6)
    step = make_step(strangers(3), batch=batch)
    for _ in range(4):
        draws(step, 3)
    assert {key: value.item() for key, value in draws.state_dict().items()} == {"count": 4}
    resumed = SampleDraws(3)
    resumed.load_state_dict(draws.state_dict())
    for _ in range(3):
        assert torch.equal(resumed(step, 3), draws(step, 3))


def test_validation_draws_the_same_every_time_and_does_not_move_the_state() -> None:
    draws, batch = SampleDraws(3), make_batch(6)
    validation = make_step(strangers(3), batch=batch, training=False)
    first = draws(validation, 3)
    draws(make_step(strangers(3), batch=batch), 3)
    assert torch.equal(draws(validation, 3), first)
    assert draws.count == 1
