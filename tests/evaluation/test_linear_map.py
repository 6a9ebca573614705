"""The linear map from one embedding to another: exact cases, a loop, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import DataError
from moekd.evaluation import linear_map_r2


def rows(seed: int, count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_linear_target_is_predicted_whatever_its_size():
    x, test, w = rows(0, 60, 5), rows(1, 30, 5), rows(2, 5, 7)
    for factor in (1e-3, 1.0, 1e3):
        found = linear_map_r2(x, factor * x @ w + 3, test, factor * test @ w + 3, ridge=0.0)
        assert found == pytest.approx(1.0, abs=1e-6)
    assert 0.99 < linear_map_r2(x, x @ w, test, test @ w) < 1.0, "the ridge costs a little"


def test_noise_is_not_predicted():
    assert linear_map_r2(rows(0, 500, 3), rows(1, 500, 4), rows(2, 500, 3), rows(3, 500, 4)) == pytest.approx(
        0, abs=0.05
    )


def test_the_value_is_that_of_the_normal_equations():
    x, y, test_x, test_y = rows(0, 20, 3), rows(1, 20, 2), rows(2, 9, 3), rows(3, 9, 2)
    a, b = x.double().numpy(), y.double().numpy()
    z = (a - a.mean(0)) / a.std(0)
    w = np.linalg.solve(z.T @ z / 20 + (0.5 + 1e-10) * np.eye(3), z.T @ (b - b.mean(0)) / 20)
    predicted = (test_x.double().numpy() - a.mean(0)) / a.std(0) @ w + b.mean(0)
    truth = test_y.double().numpy()
    expected = 1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum()
    assert linear_map_r2(x, y, test_x, test_y, ridge=0.5) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_rotating_and_stretching_either_side_changes_nothing(seed: int, factor: float):
    x, y, test_x, test_y = rows(seed, 40, 4), rows(seed + 1, 40, 3), rows(seed + 2, 15, 4), rows(seed + 3, 15, 3)
    turn = torch.linalg.qr(rows(seed + 4, 3, 3).double())[0]
    plain = linear_map_r2(x, y, test_x, test_y, ridge=0.0)
    turned = linear_map_r2(
        x * factor, y.double() @ turn * factor, test_x * factor, test_y.double() @ turn * factor, 0.0
    )
    assert turned == pytest.approx(plain, abs=1e-6)


def test_more_channels_than_rows_and_dead_channels_are_fine():
    x = torch.cat([rows(0, 8, 20), torch.zeros(8, 2)], dim=1)
    assert math.isfinite(linear_map_r2(x, rows(1, 8, 3), x, rows(1, 8, 3)))


def test_a_constant_target_has_no_variance_to_explain():
    assert math.isnan(linear_map_r2(rows(0, 9, 2), torch.ones(9, 3), rows(1, 5, 2), torch.ones(5, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit_target_NE": rows(0, 3, 2)}, "needs"),
        ({"test_MD": rows(0, 4, 3)}, "needs"),
        ({"fit_ND": rows(0, 0, 2), "fit_target_NE": rows(0, 0, 2)}, "needs"),
        ({"ridge": -1.0}, "ridge >= 0"),
        ({"fit_ND": torch.full((4, 2), math.nan)}, "finite"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str):
    given_ = {"fit_ND": rows(0, 4, 2), "fit_target_NE": rows(1, 4, 2), "test_MD": rows(2, 4, 2)}
    with pytest.raises(DataError, match=message):
        linear_map_r2(**{**given_, "test_target_ME": rows(3, 4, 2), **change})  # type: ignore[arg-type]
