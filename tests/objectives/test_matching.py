"""Training a cross-encoder: values, negatives, who learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moekd.errors import ConfigError, ModelError
from moekd.objectives import Matching, reduce
from moekd.stages.trainable import train_only
from moekd.step import Models

from .pairs import all_scores, matcher_pool, matcher_step
from .towers import make_towers, pair_of, tower_pool, tower_step


def test_equals_a_loop_with_the_hardest_negatives() -> None:
    pool = matcher_pool(1)
    step = matcher_step(pool)
    image, text = pair_of(step.signals("m0"))
    said = all_scores(pool.teacher("m0").network, image, text)
    nearest = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    loss = Matching("m0", k=2, miner="hardest")(step)["matching/m0"]
    expected = torch.zeros(6)
    for scores, near in ((said, nearest), (said.T, nearest.T)):
        for row in range(6):
            wrong = sorted((j for j in range(6) if j != row), key=lambda j: -float(near[row, j]))[:2]
            terms = [F.softplus(-scores[row, row]), *(F.softplus(scores[row, j]) for j in wrong)]
            expected[row] += torch.stack(terms).mean() / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_among_all_candidates_it_is_a_softmax() -> None:
    pool = matcher_pool(1)
    step = matcher_step(pool)
    said = all_scores(pool.teacher("m0").network, *pair_of(step.signals("m0")))
    own = torch.arange(6)
    expected = (F.cross_entropy(said, own, reduction="none") + F.cross_entropy(said.T, own, reduction="none")) / 2
    for miner in ("random", "sampled", "hardest"):
        loss = Matching("m0", k=5, miner=miner, form="softmax")(step)["matching/m0"]
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_whoever_is_named_learns() -> None:
    pool = matcher_pool(2)
    models = Models(make_towers(), pool)
    train_only(models, ["teachers.m0"], torch.nn.ModuleList())
    losses = Matching(["m0", "m1"])(matcher_step(pool))
    assert set(losses) == {"matching/m0", "matching/m1"}
    sum(map(reduce, losses.values())).backward()
    assert all(p.grad is not None for p in pool.teacher("m0").parameters())
    assert all(p.grad is None for p in pool.teacher("m1").parameters())


def test_equal_rows_are_no_negatives() -> None:
    pool = matcher_pool(1)
    step = matcher_step(pool)
    step.batch = dict(step.batch) | {"kind": torch.zeros(6, dtype=torch.int64)}
    loss = Matching("m0", same="kind")(step)["matching/m0"]
    torch.testing.assert_close(loss, F.softplus(-step.signals("m0").heads["match"]))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int) -> None:
    assert torch.isfinite(reduce(Matching("m0", k=3)(matcher_step(matcher_pool(1), rows=rows))["matching/m0"]))


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="k >= 1"):
        Matching(k=0)
    with pytest.raises(ModelError, match="can't score pairs"):
        Matching("t0")(tower_step(tower_pool(6)))
    with pytest.raises(ModelError, match="can't score pairs"):
        Matching("student")(tower_step(tower_pool(6)))
