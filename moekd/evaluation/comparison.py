"""Arms measured over seeds: mean and interval of each, paired difference to a reference, Holm within a table.

An arm is a mapping {seed: value}. Everything that compares arms (the comparison of runs, the benchmark tables, the
ablation report) goes through `compare`, so that the rules are the same everywhere: values that are not finite take no
part, differences are paired by seed, fewer than `MIN_PAIRS` pairs give no p-value, and the p-values of one table are
corrected together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..errors import DataError
from .statistics import Interval, holm, mean_interval, paired_difference, student_t

MIN_PAIRS = 3
Values = Mapping[Any, float]
Name = TypeVar("Name", bound=Hashable)


class Difference(NamedTuple):
    """Mean of left - right over the seeds that both have, with its interval, p, and p after Holm's correction.

    `low` and `high` are None for one pair, the p-values for fewer than `MIN_PAIRS` pairs.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    n: int

    @property
    def beyond_chance(self) -> bool:
        """Whether p is below 0.05 after the correction."""
        return self.p_holm is not None and self.p_holm < 0.05


class Compared(NamedTuple):
    """One arm: its finite values by seed, their interval, the seeds that are not finite, the paired difference.

    `interval` is None when no value is finite; `difference` is None for the reference and where no seed is shared.
    """

    values: dict[Any, float]
    interval: Interval | None
    not_finite: list[Any]
    difference: Difference | None


def finite(values: Values) -> dict[Any, float]:
    """Return the seeds whose value is finite."""
    return {seed: float(value) for seed, value in values.items() if math.isfinite(value)}


def compare(arms: Mapping[Name, Values], reference: Name | None, confidence: float = 0.95) -> dict[Name, Compared]:
    """Summarise each arm and compare it with the reference arm, by seed; the p-values are corrected together.

    Args:
        arms: {arm: {seed: value}}.
        reference: the arm that the differences are against; None or an unknown name gives no differences.
        confidence: of all intervals.
    """
    others = [name for name in arms if name != reference] if reference in arms else []
    pairs = [(arms[name], arms[reference]) for name in others if reference is not None]
    differences = dict(zip(others, paired(pairs, confidence), strict=True))
    found = {}
    for name, values in arms.items():
        kept = finite(values)
        interval = mean_interval(list(kept.values()), confidence) if kept else None
        found[name] = Compared(kept, interval, [s for s in values if s not in kept], differences.get(name))
    return found


def paired(pairs: Sequence[tuple[Values, Values]], confidence: float = 0.95) -> list[Difference | None]:
    """Compare pairs of arms over their shared seeds; None where they share none; Holm over all pairs with a p-value."""
    results = []
    for left, right in pairs:
        a, b = finite(left), finite(right)
        shared = [seed for seed in a if seed in b]
        results.append(
            paired_difference([a[s] for s in shared], [b[s] for s in shared], confidence) if shared else None
        )
    tested = [index for index, result in enumerate(results) if result is not None and result.p is not None]
    raw = [result.p for result in results if result is not None and result.p is not None]
    adjusted = dict(zip(tested, holm(raw), strict=True))
    return [
        None if result is None else Difference(*result[:4], adjusted.get(index), result.n)
        for index, result in enumerate(results)
    ]


class Share(NamedTuple):
    """Share of a gap with its interval (None for fewer than two seeds)."""

    value: float
    low: float | None
    high: float | None
    n: int


def share_of_gap(arm: Values, baseline: Values, oracle: Values, confidence: float = 0.95) -> Share | None:
    """Return (arm - baseline) / (oracle - baseline) over the seeds that all three have.

    None unless the gap is larger than 0 and its paired interval lies above 0: a share of nothing says nothing. The
    interval is that of Fieller, Some problems in interval estimation, J. R. Stat. Soc. B 16 (1954): the shares r for
    which a paired t-test does not reject that the mean of (arm - baseline) - r (oracle - baseline) is 0. It is finite
    exactly where the interval of the gap excludes 0.

    Raises:
        DataError: a confidence outside of (0, 1).
    """
    if not 0 < confidence < 1:
        raise DataError(f"confidence {confidence} is not between 0 and 1")
    a, b, c = finite(arm), finite(baseline), finite(oracle)
    seeds = [seed for seed in a if seed in b and seed in c]
    n = len(seeds)
    if n < 2:
        return None
    gain, gap = np.array([a[s] - b[s] for s in seeds]), np.array([c[s] - b[s] for s in seeds])
    squared = student_t(n - 1, confidence) ** 2 / n
    (gain_var, both), (_, gap_var) = np.cov(gain, gap)
    x, y = float(gain.mean()), float(gap.mean())
    first = y * y - squared * gap_var
    if y <= 0 or first <= 0:
        return None
    middle, last = x * y - squared * both, x * x - squared * gain_var
    root = math.sqrt(max(0.0, middle * middle - first * last))
    return Share(x / y, (middle - root) / first, (middle + root) / first, n)


__all__ = ["MIN_PAIRS", "Compared", "Difference", "Share", "compare", "finite", "paired", "share_of_gap"]
