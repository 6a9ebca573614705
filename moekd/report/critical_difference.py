"""Many methods on many data sets: mean ranks, the Friedman test, and which methods can't be told apart (Demsar,
"Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006).

Shapes: N blocks (data sets), K methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..evaluation.statistics import holm
from .figures import BLUE, GREY, Drawing, finish, new_figure, shorten

Test = Literal["nemenyi", "wilcoxon"]
LEVEL = 0.05
PITCH = 0.24


@dataclass(frozen=True)
class Ranking:
    """Methods by mean rank, best first.

    Attributes:
        methods: their names.
        ranks: mean ranks, 1 is best.
        blocks: number of blocks N.
        friedman_p: p-value of the hypothesis that all methods are alike; None for fewer than 3 methods or 2 blocks.
        distance: difference of mean ranks that is beyond chance (Nemenyi); None with the test `wilcoxon`.
        groups: maximal runs of neighbours, as (first, last) index, within which no difference is beyond chance.
        test: what the groups come from.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    blocks: int
    friedman_p: float | None
    distance: float | None
    groups: tuple[tuple[int, int], ...]
    test: Test


def rank_methods(scores: Mapping[str, Sequence[float]], test: Test = "nemenyi", level: float = LEVEL) -> Ranking:
    """Rank methods over blocks, ties sharing their mean rank.

    Args:
        scores: one value a block for each method, in the same order of blocks; larger is better.
        test: `nemenyi` compares mean ranks with one critical difference; `wilcoxon` makes a signed-rank test of every
            pair, corrected by Holm's method.
        level: of the groups.

    Raises:
        DataError: fewer than 2 methods, no block, lengths that differ, or values that are not finite.
    """
    names = list(scores)
    table = _table(scores)
    from scipy.stats import friedmanchisquare, rankdata

    ranks_NK = rankdata(-table, axis=1)
    means = ranks_NK.mean(axis=0)
    order = np.argsort(means, kind="stable")
    blocks, methods = table.shape
    tested = methods >= 3 and blocks >= 2 and bool((np.ptp(table, axis=1) > 0).any())
    p = float(friedmanchisquare(*table.T).pvalue) if tested else None
    distance = nemenyi_distance(methods, blocks, level) if test == "nemenyi" else None
    ordered = means[order]
    if distance is not None:
        alike = np.abs(ordered[:, None] - ordered[None]) <= distance
    else:
        alike = wilcoxon_p(table[:, order]) >= level
    return Ranking(
        tuple(names[i] for i in order),
        tuple(float(rank) for rank in ordered),
        blocks,
        p,
        distance,
        groups_of(alike),
        test,
    )


def nemenyi_distance(methods: int, blocks: int, level: float = LEVEL) -> float:
    """Return the critical difference of mean ranks, `q sqrt(K (K + 1) / (6 N))`; q is the studentised range over
    sqrt(2) with infinitely many degrees of freedom.

    Raises:
        DataError: fewer than 2 methods or no block.
    """
    if methods < 2 or blocks < 1:
        raise DataError(f"a critical difference needs at least 2 methods and a block, found {methods} and {blocks}")
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def wilcoxon_p(scores_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values of the signed-rank tests of all pairs after Holm's correction, `[K, K]`; 1 for equal methods."""
    from scipy.stats import wilcoxon

    methods = scores_NK.shape[1]
    pairs = list(combinations(range(methods), 2))
    raw = []
    for a, b in pairs:
        same = bool((scores_NK[:, a] == scores_NK[:, b]).all())
        raw.append(1.0 if same else float(wilcoxon(scores_NK[:, a], scores_NK[:, b]).pvalue))
    result = np.ones((methods, methods))
    for (a, b), value in zip(pairs, holm(raw), strict=True):
        result[a, b] = result[b, a] = value
    return result


def groups_of(alike_KK: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Return the maximal runs of at least 2 neighbours that are all alike; runs inside of another one are left out."""
    size = len(alike_KK)
    runs: list[tuple[int, int]] = []
    for first in range(size):
        last = first
        while last + 1 < size and bool(alike_KK[first : last + 2, first : last + 2].all()):
            last += 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return tuple(runs)


def critical_difference_diagram(ranking: Ranking, slug: str, what: str) -> Drawing:
    """Draw the mean ranks, best on top, with a bar beside the methods that can't be told apart.

    Args:
        ranking: from `rank_methods`.
        slug: file name without its ending.
        what: what a block is ("data sets", "data sets and seeds"), for the caption.
    """
    count = len(ranking.methods)
    figure, (axis,) = new_figure(1.2 + PITCH * count)
    heights = np.arange(count)[::-1]
    axis.plot(ranking.ranks, heights, "o", color=BLUE, ms=6)
    axis.set_yticks(heights, [shorten(name, 44) for name in ranking.methods], fontsize=8)
    lane_width = max(0.35, 0.035 * count)
    for lane, (first, last) in enumerate(ranking.groups):
        place = count + 0.8 + lane_width * lane
        axis.plot([place, place], [heights[first] + 0.2, heights[last] - 0.2], color=GREY, lw=3, solid_capstyle="butt")
    if ranking.distance is not None:
        start = min(ranking.ranks)
        axis.plot([start, start + ranking.distance], [count - 0.3] * 2, color="#222222", lw=1.6, marker="|", ms=7)
        axis.text(start, count - 0.1, f"critical difference {ranking.distance:.2f}", fontsize=8, va="bottom")
    axis.set_xlim(0.5, count + 0.85 + lane_width * max(1, len(ranking.groups)))
    axis.set_ylim(-0.7, count + 0.5)
    axis.set_xlabel("mean rank")
    words = "; ".join(f"{name} {rank:.1f}" for name, rank in zip(ranking.methods, ranking.ranks, strict=True))
    alt = f"Mean ranks of {count} methods over {ranking.blocks} {what}, best first: {words}."
    caption = (
        f"Mean rank of each method (1 is best) over {ranking.blocks} {what}. Methods beside one grey bar can't be "
    )
    caption += "told apart "
    caption += "(Nemenyi test, 5 %)" if ranking.test == "nemenyi" else "(Wilcoxon signed-rank tests, 5 % after Holm)"
    caption += "" if ranking.friedman_p is None else f"; Friedman test over all: p = {ranking.friedman_p:.2g}"
    return finish(figure, slug, "ranks", alt, caption)


def _table(scores: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    """Return the scores as `[N, K]`."""
    lengths = {len(values) for values in scores.values()}
    if len(scores) < 2 or len(lengths) != 1 or lengths == {0}:
        raise DataError(
            f"ranks need at least 2 methods with one value a block each; found {len(scores)} methods with "
            f"{', '.join(map(str, sorted(lengths))) or 'no'} values"
        )
    table = np.array(list(scores.values()), dtype=np.float64).T
    if not np.isfinite(table).all():
        raise DataError(f"ranks need finite values; {int((~np.isfinite(table)).sum())} are not")
    return table
