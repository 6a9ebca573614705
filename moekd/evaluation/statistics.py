"""Intervals and paired comparisons over seeds, and the correction for many comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

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
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / n**0.5
    return Interval(mean, mean - half, mean + half, sd)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Paired:
    """Compare two methods measured on the same seeds, by a paired t-test on the differences a - b.

    A p-value from fewer than three pairs is refused (None). When all differences are equal, the t statistic has no
    finite value: p is then 1 for no difference and 0 for a constant one.

    Raises:
        DataError: lengths differ, no pair, or a value that is not finite.
    """
    left, right = _finite(a, "a"), _finite(b, "b")
    if len(left) != len(right):
        raise DataError(f"a paired comparison needs one value a seed on both sides, got {len(left)} and {len(right)}")
    differences = left - right
    mean, low, high, sd = mean_interval(differences.tolist(), confidence)
    n = len(differences)
    if n < 3:
        return Paired(mean, low, high, None, n)
    p = 2 * float(stdtr(n - 1, -abs(mean) / sd * n**0.5)) if sd else float(mean == 0)
    return Paired(mean, low, high, p, n)


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
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty_like(stepped)
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def _finite(values: Sequence[float], name: str) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise DataError(f"{name}: expected a flat list of at least one number, got shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise DataError(f"{name}: {int((~np.isfinite(sample)).sum())} of {len(sample)} numbers are not finite")
    return sample
