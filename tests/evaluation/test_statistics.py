"""Intervals and tests against hand-computed values and scipy.stats."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from moekd.errors import DataError
from moekd.evaluation import holm, mean_interval, paired_difference


def test_mean_interval_hand_case():
    # t(0.975, 4) = 2.776445; sd of 1..5 = sqrt(2.5)
    mean, low, high, sd = mean_interval([1, 2, 3, 4, 5])
    assert (mean, sd) == (3.0, pytest.approx(1.5811388))
    assert (low, high) == (pytest.approx(3 - 2.776445 * 0.7071068), pytest.approx(3 + 2.776445 * 0.7071068))


def test_mean_interval_of_one_value_has_no_width():
    assert mean_interval([0.5]) == (0.5, None, None, None)


def test_higher_confidence_is_wider():
    assert mean_interval([1, 2, 4], 0.99).low < mean_interval([1, 2, 4], 0.9).low


def test_paired_difference_matches_scipy():
    a, b = [0.61, 0.64, 0.60, 0.66, 0.63], [0.60, 0.60, 0.61, 0.62, 0.60]
    found, expected = paired_difference(a, b), stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (found.mean, found.n) == (pytest.approx(0.022), 5)


def test_paired_difference_is_antisymmetric():
    a, b = [1.0, 2.0, 4.0], [0.5, 2.5, 3.0]
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert forward.mean == -backward.mean
    assert forward.p == pytest.approx(backward.p)
    assert forward.low == pytest.approx(-backward.high)


def test_few_pairs_give_no_p_value():
    assert paired_difference([1.0], [0.5]) == (0.5, None, None, None, 1)
    two = paired_difference([1.0, 2.0], [0.5, 1.0])
    assert two.p is None
    assert two.low is not None


def test_equal_differences():
    assert paired_difference([1, 2, 3], [1, 2, 3]).p == 1.0
    assert paired_difference([2, 3, 4], [1, 2, 3]).p == 0.0


def test_holm_hand_case():
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04 -> running maximum .02 .03 .06 .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_constant_differences_are_recognised_through_rounding():
    # 0.62 - 0.61 and 0.61 - 0.60 differ in the last bit, which is no spread
    a, b = [0.61, 0.62, 0.73], [0.60, 0.61, 0.72]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_difference(a, b).p == 0.0
        assert paired_difference(a, a).p == 1.0


def test_paired_hand_case():
    # differences 1 2 3 4 5: mean 3, sd sqrt(2.5), t = 3 / sqrt(2.5 / 5) = 4.242641, two-sided p with 4 df = 0.013236
    found = paired_difference([2, 4, 6, 8, 10], [1, 2, 3, 4, 5])
    assert found.p == pytest.approx(0.0132356, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=12))
def test_paired_difference_is_scipy_on_any_sample(pairs):
    a, b = zip(*pairs, strict=True)
    differences = [x - y for x, y in pairs]
    assume(max(differences) - min(differences) > 1e-6)
    found, expected = paired_difference(a, b), stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=1e-9), pytest.approx(interval.high, abs=1e-9))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_holm_is_statsmodels_and_bonferroni_bounds_it(p_values):
    found = holm(p_values)
    assert found == pytest.approx(multipletests(p_values, method="holm")[1].tolist())
    assert all(p <= adjusted <= min(1, p * len(p_values)) + 1e-12 for p, adjusted in zip(p_values, found, strict=True))


def test_holm_naive_loop():
    p_values = [0.04, 0.001, 0.03, 0.2, 0.0005]
    expected = {}
    running = 0.0
    for rank, p in enumerate(sorted(p_values)):
        running = max(running, min(1.0, p * (len(p_values) - rank)))
        expected[p] = running
    assert holm(p_values) == pytest.approx([expected[p] for p in p_values])


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval([]),
        lambda: mean_interval([1.0, float("nan")]),
        lambda: mean_interval([1.0, 2.0], 1.0),
        lambda: paired_difference([1.0, 2.0], [1.0]),
        lambda: holm([0.5, 1.5]),
    ],
)
def test_refusals(call):
    with pytest.raises(DataError):
        call()
