"""Mean ranks, the critical difference, groups, and the diagram."""

from __future__ import annotations

import numpy as np
import pytest

from moekd.errors import DataError
from moekd.report.critical_difference import (
    critical_difference_diagram,
    groups_of,
    nemenyi_distance,
    rank_methods,
    wilcoxon_p,
)
from moekd.report.figures import styled


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_values_are_those_of_the_published_table(methods: int, q: float) -> None:
    blocks = 14
    distance = nemenyi_distance(methods, blocks)
    assert distance / (methods * (methods + 1) / (6 * blocks)) ** 0.5 == pytest.approx(q, abs=2e-3)


def test_ranks_by_hand() -> None:
    scores = {"a": [0.9, 0.8, 0.7], "b": [0.8, 0.8, 0.9], "c": [0.1, 0.2, 0.3]}
    ranking = rank_methods(scores)
    assert ranking.methods == ("a", "b", "c")
    assert ranking.ranks == pytest.approx((1.5, 1.5, 3.0))
    assert ranking.blocks == 3
    assert ranking.groups == ((0, 2),)


def test_ranks_keep_their_order_when_names_change_places() -> None:
    rng = np.random.default_rng(0)
    scores = {f"m{i}": rng.normal(i, 1, 12).tolist() for i in range(5)}
    first, second = rank_methods(scores), rank_methods(dict(reversed(scores.items())))
    assert dict(zip(first.methods, first.ranks, strict=True)) == dict(zip(second.methods, second.ranks, strict=True))
    assert sum(first.ranks) == pytest.approx(15)
    assert first.friedman_p is not None
    assert first.friedman_p < 0.01


def test_methods_that_differ_every_time_are_told_apart_and_equal_ones_never() -> None:
    scores = {"good": np.linspace(0.8, 0.9, 40), "same": np.linspace(0.8, 0.9, 40), "bad": np.linspace(0.1, 0.2, 40)}
    for test in ("nemenyi", "wilcoxon"):
        ranking = rank_methods({name: values.tolist() for name, values in scores.items()}, test)  # type: ignore[arg-type]
        assert ranking.methods[2] == "bad"
        assert ranking.groups == ((0, 1),)


def test_pairwise_tests_are_symmetric_and_corrected() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(20, 4)) + np.array([0, 0, 1, 2])
    p = wilcoxon_p(table)
    assert np.array_equal(p, p.T)
    assert (np.diag(p) == 1).all()
    from scipy.stats import wilcoxon

    assert p[0, 3] >= wilcoxon(table[:, 0], table[:, 3]).pvalue


def test_groups_are_the_longest_runs() -> None:
    alike = np.eye(5, dtype=bool)
    for a, b in ((0, 1), (1, 2), (0, 2), (2, 3), (1, 3)):
        alike[a, b] = alike[b, a] = True
    assert groups_of(alike) == ((0, 2), (1, 3))
    assert groups_of(np.eye(3, dtype=bool)) == ()
    assert groups_of(np.ones((4, 4), dtype=bool)) == ((0, 3),)


def test_the_diagram_says_what_it_shows() -> None:
    rng = np.random.default_rng(2)
    scores = {f"method {i}": rng.normal(i, 1, 8).tolist() for i in range(12)}
    with styled():
        drawing = critical_difference_diagram(rank_methods(scores), "ranks", "data sets")
    assert drawing.png.startswith(b"\x89PNG")
    assert "12 methods over 8 data sets" in drawing.alt
    assert "Nemenyi" in drawing.caption
    assert "Friedman" in drawing.caption


@pytest.mark.parametrize(
    "scores", [{}, {"a": [1.0]}, {"a": [1.0], "b": [1.0, 2.0]}, {"a": [], "b": []}, {"a": [1.0], "b": [float("nan")]}]
)
def test_what_cant_be_ranked_is_refused(scores: dict[str, list[float]]) -> None:
    with pytest.raises(DataError, match="ranks need"):
        rank_methods(scores)
