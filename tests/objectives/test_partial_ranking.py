"""Partial ranking: known values, a plain loop, what it does not depend on, several teachers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError, ModelError
from moekd.objectives import PartialRanking, RoutedObjective, partial_ranking_loss, reduce
from moekd.objectives.equal_rows import HIDDEN
from moekd.objectives.partial_ranking import rank_points
from moekd.routers import GATES, Dense, Router

from .pairs import MatcherTowers, matcher_pool, matcher_step, scorers_of
from .towers import make_towers, tower_pool, tower_step


def loop(student: list[float], teacher: list[float], valid: list[bool]) -> float:
    """Formula 4 of the sheet, word for word."""
    order = sorted(range(len(student)), key=lambda j: -teacher[j])
    total = 0.0
    for place, j in enumerate(order):
        if not valid[j]:
            break
        below = sum(math.exp(student[k]) for k in order[place:])
        total -= math.log(math.exp(student[j]) / below)
    return total


def test_known_values() -> None:
    student = torch.tensor([[2.0, 1.0, 0.0]])
    two, one = torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]])
    assert float(partial_ranking_loss(student, student, two)) == pytest.approx(0.7208675, abs=1e-6)
    assert float(partial_ranking_loss(student, student, one)) == pytest.approx(0.4076059, abs=1e-6)
    assert float(partial_ranking_loss(student, student, two, "mean_over_valid")) == pytest.approx(0.7208675 / 2)
    assert float(partial_ranking_loss(student, student, ~two & ~two.roll(1))) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10_000))
def test_equals_the_loop(rows: int, k: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(rows, k, generator=rng).double() * 3, torch.randn(rows, k, generator=rng)
    valid = torch.rand(rows, k, generator=rng) < 0.7
    expected = [loop(*(part[row].tolist() for part in (student, teacher, valid))) for row in range(rows)]
    np.testing.assert_allclose(partial_ranking_loss(student, teacher, valid).numpy(), expected, rtol=1e-6, atol=1e-9)


def test_all_but_the_last_is_the_whole_of_listmle() -> None:
    student, teacher = torch.randn(3, 6).double(), torch.randn(3, 6)
    order = teacher.argsort(dim=1, descending=True)
    ordered = student.gather(1, order)
    whole = sum(ordered[:, j:].logsumexp(dim=1) - ordered[:, j] for j in range(6))
    every = torch.ones(3, 6, dtype=torch.bool)
    torch.testing.assert_close(partial_ranking_loss(student, teacher, every), whole)


def test_what_it_does_not_depend_on() -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(4, 6).double(), torch.randn(4, 6)
    valid = teacher.argsort(dim=1, descending=True).argsort(dim=1) < 3
    base = partial_ranking_loss(student, teacher, valid)
    torch.testing.assert_close(partial_ranking_loss(student, teacher.exp() ** 3, valid), base)
    torch.testing.assert_close(partial_ranking_loss(student + 5.0, teacher, valid), base)
    shuffled = teacher.where(valid, -10 - torch.rand(4, 6))
    torch.testing.assert_close(partial_ranking_loss(student, shuffled, valid), base)
    places = torch.randperm(6)
    moved = partial_ranking_loss(student[:, places], teacher[:, places], valid[:, places])
    torch.testing.assert_close(moved, base)


def test_hidden_candidates_take_no_part() -> None:
    student, teacher = torch.tensor([[2.0, 1.0, 0.0, HIDDEN]]), torch.tensor([[3.0, 2.0, 1.0, 9.0]])
    valid = torch.tensor([[True, True, False, True]])
    assert float(partial_ranking_loss(student, teacher, valid)) == pytest.approx(0.7208675, abs=1e-6)
    nothing = partial_ranking_loss(torch.full((1, 2), HIDDEN), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert float(nothing) == 0


def test_rank_points_are_a_borda_count() -> None:
    said = torch.tensor([[[3.0, 1.0, 2.0], [0.5, 0.5, 0.1]]])
    points = rank_points(said, torch.ones(1, 3, dtype=torch.bool))
    assert points.tolist() == [[[2.0, 0.0, 1.0], [1.5, 1.5, 0.0]]]


@pytest.mark.parametrize("merge", ["ranks", "scores"])
def test_any_rising_map_of_the_scores_gives_the_same_loss_with_top_m(merge) -> None:
    """The point of the method: scores near 0 and 1 order as well as any others. A threshold breaks it."""
    pool, step = matcher_pool(1), matcher_step(matcher_pool(1))
    scorers = scorers_of(pool)
    bent = {name: lambda i, t, f=f: torch.tanh(f(i, t) / 50) + 3 for name, f in scorers.items()}
    for options, same in (({"top_m": 2, "threshold": None}, True), ({"threshold": 0.5}, False)):
        both = [
            PartialRanking(k=4, merge=merge, scorers=s, **options)(step)["partial_ranking"] for s in (scorers, bent)
        ]
        assert torch.allclose(*both) == same


def test_two_cross_encoders_a_uniform_router_and_two_of_the_same() -> None:
    pool = matcher_pool(2)
    options = {"k": 4, "top_m": 3, "threshold": None, "scorers": scorers_of(pool)}
    plain = PartialRanking(**options)(matcher_step(pool))["partial_ranking"]
    router = Router(GATES.get("static")(num_teachers=2), Dense(), combine="target")
    routed = RoutedObjective(PartialRanking(**options))(matcher_step(pool, router=router))["routed"]
    torch.testing.assert_close(routed, plain)
    twins = matcher_pool(1, twice=True)
    one = PartialRanking("m0", **options | {"scorers": scorers_of(twins)})(matcher_step(twins))["partial_ranking"]
    both = PartialRanking(**options | {"scorers": scorers_of(twins)})(matcher_step(twins))["partial_ranking"]
    torch.testing.assert_close(both, one)


def test_a_dual_encoder_can_teach_too() -> None:
    """Its cosines are what the batch's similarities are."""
    step = tower_step(tower_pool(9))
    loss = PartialRanking(k=5, threshold=None)(step)["partial_ranking"]
    assert loss.shape == (6,)
    student, teacher = (step.student, step.signals("t0"))
    unit = torch.nn.functional.normalize
    total = torch.zeros(6)
    for a, b in (("image", "text"), ("text", "image")):
        s = unit(student.embeddings[a]) @ unit(student.embeddings[b]).T / 0.07
        t = unit(teacher.embeddings[a]) @ unit(teacher.embeddings[b]).T
        for row in range(6):
            others = [j for j in range(6) if j != row]
            total[row] += loop(s[row, others].tolist(), t[row, others].tolist(), [True] * 5) / 2
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-4)


def test_gradients_stay_out_of_the_teacher() -> None:
    pool = matcher_pool(1)
    student = make_towers()
    step = matcher_step(pool, student)
    reduce(PartialRanking(k=3, threshold=None, scorers=scorers_of(pool))(step)["partial_ranking"]).backward()
    assert all(p.grad is None for p in pool.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(rows: int) -> None:
    pool = matcher_pool(1)
    student = make_towers()
    loss = reduce(PartialRanking(k=8, scorers=scorers_of(pool))(matcher_step(pool, student, rows))["partial_ranking"])
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_mistakes() -> None:
    for options, words in (({"k": 0}, "k must be"), ({"top_m": 0}, "top_m"), ({"prefilter": 2, "k": 4}, "prefilter")):
        with pytest.raises(ConfigError, match=words):
            PartialRanking(**options)
    step = matcher_step(matcher_pool(1))
    step.student.embeddings.clear()
    with pytest.raises(ModelError, match="embedding 'image'"):
        PartialRanking()(step)


def test_the_matcher_of_these_tests_scores_pairs() -> None:
    network = MatcherTowers()
    assert network.match(torch.randn(5, 6), torch.randn(5, 6)).shape == (5,)
