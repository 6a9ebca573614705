"""Intervals and tests against hand-computed values and scipy.stats."""

from __future__ import annotations

import pytest
from scipy import stats

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
