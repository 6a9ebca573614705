"""Arms over seeds: pairing, Holm within a table, and the share of a gap, against hand-computed values and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from moekd.errors import DataError
from moekd.evaluation.comparison import compare, paired, share_of_gap

BASE = dict(enumerate([0.60, 0.62, 0.61, 0.64, 0.63]))


def shifted(*differences):
    return {seed: BASE[seed] + difference for seed, difference in enumerate(differences)}


def test_hand_case():
    # differences .01 .02 .03: mean .02, sd .01, t = .02 / (.01 / sqrt 3) = 3.4641, p(2 df) = 0.0742
    found = compare({"base": BASE, "arm": shifted(0.01, 0.02, 0.03)}, "base")["arm"]
    assert found.difference.mean == pytest.approx(0.02)
    assert found.difference.p == pytest.approx(0.0741799, abs=1e-6)
    assert found.difference.p_holm == found.difference.p, "one comparison needs no correction"
    assert (found.difference.low, found.difference.high) == pytest.approx((-0.0048414, 0.0448414), abs=1e-6)
    assert found.interval.mean == pytest.approx((0.61 + 0.64 + 0.64) / 3)


def test_differences_pair_by_seed_not_by_order():
    arm = {4: 0.66, 0: 0.61, 2: 0.63}
    found = compare({"base": BASE, "arm": arm}, "base")["arm"].difference
    assert found.n == 3
    assert found.mean == pytest.approx((0.03 + 0.01 + 0.02) / 3)
    assert found.p == pytest.approx(stats.ttest_rel([0.66, 0.61, 0.63], [0.63, 0.60, 0.61]).pvalue)


def test_p_values_of_a_table_are_corrected_together_and_few_pairs_have_none():
    arms = {
        "base": BASE,
        "sure": shifted(0.021, 0.02, 0.022, 0.019, 0.02),
        "unsure": shifted(0.03, -0.02, 0.01, -0.01, 0.02),
        "two": shifted(0.02, 0.03),
    }
    found = compare(arms, "base")
    assert found["two"].difference.p is None
    assert found["two"].difference.p_holm is None
    assert found["two"].difference.low is not None
    assert not found["two"].difference.beyond_chance
    assert found["sure"].difference.p_holm == pytest.approx(2 * found["sure"].difference.p), "of two tests, not three"
    assert found["sure"].difference.beyond_chance
    assert found["unsure"].difference.p_holm == pytest.approx(found["unsure"].difference.p)
    assert found["base"].difference is None


@pytest.mark.parametrize("reference", [None, "absent"])
def test_without_a_reference_there_are_intervals_only(reference):
    found = compare({"base": BASE}, reference)["base"]
    assert found.difference is None
    assert found.interval.sd == pytest.approx(np.std(list(BASE.values()), ddof=1))


def test_values_that_are_not_finite_take_no_part_and_are_named():
    arm = {0: math.nan, 1: 0.64, 2: math.inf, 3: 0.65, 4: 0.66}
    found = compare({"base": BASE, "arm": arm, "none": {0: math.nan}}, "base")
    assert found["arm"].not_finite == [0, 2]
    assert found["arm"].difference.n == 3
    assert found["none"].interval is None
    assert found["none"].difference is None


def test_pairs_without_a_shared_seed_have_no_difference():
    assert paired([({0: 1.0}, {1: 1.0}), ({0: 2.0}, {0: 1.0})])[0] is None
    assert paired([]) == []


def test_share_of_gap_hand_case():
    # gains 1 2 3 over gaps 4 4 4: share .5; a constant gap makes Fieller's interval the t interval of the gains over 4
    share = share_of_gap({0: 1, 1: 2, 2: 3}, {0: 0, 1: 0, 2: 0}, {0: 4, 1: 4, 2: 4})
    half = 4.3026527 * 1 / math.sqrt(3) / 4
    assert share.value == 0.5
    assert (share.low, share.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert share.n == 3


def test_ends_of_the_interval_are_where_a_paired_test_turns():
    generator = np.random.default_rng(1)
    base = 0.6 + 0.02 * generator.standard_normal(6)
    arm, oracle = base + 0.02 + 0.006 * generator.standard_normal(6), base + 0.05 + 0.008 * generator.standard_normal(6)
    share = share_of_gap(*(dict(enumerate(values.tolist())) for values in (arm, base, oracle)))
    assert share.low < share.value < share.high
    for end in (share.low, share.high):
        assert stats.ttest_rel(arm - base, end * (oracle - base)).pvalue == pytest.approx(0.05)
    assert share_of_gap(*(dict(enumerate(v.tolist())) for v in (oracle, base, oracle)))[:3] == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    "oracle",
    [
        shifted(0.0, 0.0, 0.0, 0.0, 0.0),
        shifted(-0.05, -0.05, -0.04, -0.06, -0.05),
        shifted(0.05, -0.02, 0.06, -0.03, 0.01),
        shifted(0.05),
        {9: 0.7},
    ],
    ids=["no_gap", "worse", "unsure", "one_seed", "other_seeds"],
)
def test_a_share_of_no_gap_is_refused(oracle):
    assert share_of_gap(shifted(0.01, 0.02, 0.01, 0.02, 0.02), BASE, oracle) is None


def test_confidence_is_checked():
    with pytest.raises(DataError, match="confidence"):
        share_of_gap(BASE, BASE, BASE, 1.5)
