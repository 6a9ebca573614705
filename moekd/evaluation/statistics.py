"""Intervals and paired comparisons over seeds, and the correction for many comparisons.

The distributions and tests are those of scipy.stats and statsmodels, which are imported on first use: they take a
second to load, and most commands need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


class Interval(NamedTuple):
    """A mean with its confidence interval and the sample standard deviation; None where n < 2 defines none."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None


class Paired(NamedTuple):
    """Mean of the differences a - b, its confidence interval (None for n < 2), two-sided p (None for n < 3), pairs."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return mean, Student-t confidence limits and standard deviation (n - 1) of a sample.

    Raises:
        DataError: no value, a value that is not finite, or a confidence outside of (0, 1).
    """
    sample = _finite(values, "values")
    if not 0 < confidence < 1:
        raise DataError(f"confidence {confidence} is not between 0 and 1")
    n, mean = len(sample), float(sample.mean())
    if n < 2:
        return Interval(mean, None, None, None)
    sd = float(sample.std(ddof=1))
    half = student_t(n - 1, confidence) * sd / n**0.5
    return Interval(mean, mean - half, mean + half, sd)


def student_t(degrees: int, confidence: float = 0.95) -> float:
    """Return the half width, in standard errors, of a two-sided Student-t interval."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Paired:
    """Compare two methods measured on the same seeds, by a paired t-test on the differences a - b.

    A p-value from fewer than three pairs is refused (None). When all differences are equal (but for rounding), the t
    statistic has no finite value: p is then 1 for no difference and 0 for a constant one.

    Raises:
        DataError: lengths differ, no pair, or a value that is not finite.
    """
    from scipy.stats import ttest_rel

    left, right = _finite(a, "a"), _finite(b, "b")
    if len(left) != len(right):
        raise DataError(f"a paired comparison needs one value a seed on both sides, got {len(left)} and {len(right)}")
    differences = left - right
    mean, low, high, _ = mean_interval(differences.tolist(), confidence)
    n = len(differences)
    if n < 3:
        return Paired(mean, low, high, None, n)
    rounding = 8 * float(np.finfo(np.float64).eps) * float(np.abs([left, right]).max())
    if np.ptp(differences) <= rounding:
        return Paired(mean, low, high, float(abs(mean) <= rounding), n)
    return Paired(mean, low, high, float(ttest_rel(left, right).pvalue), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for many comparisons, in the given order.

    Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979): the i-th smallest of m
    values is multiplied by m - i + 1; the running maximum keeps the order; values end at 1.

    Raises:
        DataError: a value outside of [0, 1].
    """
    if not len(p_values):
        return []
    p = _finite(p_values, "p_values")
    if (p < 0).any() or (p > 1).any():
        raise DataError(f"p-values lie in [0, 1], got {p.min():g} to {p.max():g}")
    return list(_holm(tuple(p.tolist())))


@lru_cache(maxsize=1024)
def _holm(p_values: tuple[float, ...]) -> tuple[float, ...]:
    """Return the adjusted values; kept, because statsmodels collects garbage on every call, which takes long."""
    from statsmodels.stats.multitest import multipletests

    return tuple(float(value) for value in multipletests(p_values, method="holm")[1])


def _finite(values: Sequence[float], name: str) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise DataError(f"{name}: expected a flat list of at least one number, got shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise DataError(f"{name}: {int((~np.isfinite(sample)).sum())} of {len(sample)} numbers are not finite")
    return sample
