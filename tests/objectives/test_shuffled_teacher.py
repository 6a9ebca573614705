"""The control with a shuffled teacher: what changes places, what does not, and when it comes out the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError
from moekd.objectives import HardPairKD, PartialRanking
from moekd.objectives.equal_rows import HIDDEN
from moekd.objectives.hard_pairs import HardPairObjective, shuffled

from ..engine.tiny import recipe_of, simple
from .pairs import matcher_pool, matcher_step, scorers_of


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 4), st.integers(1, 3), st.integers(0, 7), st.integers(0, 10_000))
def test_every_row_keeps_its_scores_and_what_is_hidden_its_place(rows: int, teachers: int, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    valid = torch.rand(rows, k) < 0.7
    scores = torch.randn(rows, teachers, k).masked_fill(~valid[:, None], HIDDEN)
    found = shuffled(scores, valid)
    assert torch.equal(found.sort(dim=2).values, scores.sort(dim=2).values)
    assert torch.equal(found == HIDDEN, scores == HIDDEN)
    pairs = [sorted(zip(*row.tolist(), strict=True)) for row in scores]
    assert [sorted(zip(*row.tolist(), strict=True)) for row in found] == pairs, "teachers move together"


def test_all_orders_are_as_likely() -> None:
    torch.manual_seed(0)
    found = shuffled(
        torch.tensor([[[1.0, 2.0, 3.0, HIDDEN]]]).expand(6000, 1, 4),
        torch.tensor([[True] * 3 + [False]]).expand(6000, 4),
    )
    counts = found[:, 0, :3].unique(dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert 850 < int(counts.min()) <= int(counts.max()) < 1150


class Seen(HardPairObjective):
    """Keeps what `compare` is given."""

    name = "seen"

    def __init__(self, objective: HardPairObjective) -> None:
        super().__init__()
        self.__dict__.update(objective.__dict__)
        self.said: list[torch.Tensor] = []

    def compare(self, student_BR, teacher_BTR, weights_BT, mix):
        self.said.append(teacher_BTR)
        return student_BR[:, 0]


@pytest.mark.parametrize("miner", ["student", "teacher"])
@pytest.mark.parametrize("kind", [PartialRanking, HardPairKD])
def test_the_right_answer_keeps_its_score_and_the_miner_sees_the_true_ones(kind, miner) -> None:
    pool = matcher_pool(2)
    options = {"k": 4, "miner": miner, "prefilter": None, "scorers": scorers_of(pool)}
    both = []
    for control in (None, "shuffled"):
        seen = Seen(kind(control=control, **options))
        torch.manual_seed(1)
        seen(matcher_step(pool))
        both.append(torch.stack(seen.said))
    plain, control = both
    assert torch.equal(plain[..., 0], control[..., 0])
    assert not torch.equal(plain, control)
    assert torch.equal(plain.sort(dim=-1).values, control.sort(dim=-1).values)


@pytest.mark.parametrize("kind", [PartialRanking, HardPairKD])
def test_the_same_seed_and_step_shuffle_alike(kind) -> None:
    pool = matcher_pool(1)
    options = {"k": 4, "scorers": scorers_of(pool), "control": "shuffled"}
    options |= {"threshold": None} if kind is PartialRanking else {}

    def losses(seed: int) -> torch.Tensor:
        objective = kind(**options)
        torch.manual_seed(seed)
        return torch.stack([next(iter(objective(matcher_step(pool)).values())) for _ in range(2)])

    assert torch.equal(losses(5), losses(5))
    assert not torch.equal(losses(5), losses(6))
    assert not torch.equal(*losses(5)), "every step draws anew"


def test_only_known_controls() -> None:
    objective = {"kind": "partial_ranking", "control": "reversed"}
    with pytest.raises(ConfigError, match=r"objectives\[0\]\.control"):
        recipe_of(simple({"objectives": [objective]}))
