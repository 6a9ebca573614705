"""Temperatures and exploration over a stage: the share of lots, no lots outside of training, exact resumption."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError
from moekd.routers import Dense, TopK
from moekd.routers.gates.base import EXCLUDED
from moekd.schedules import Cosine, Linear, Progress

from ..builders import make_batch, make_step, strangers

ROWS, TEACHERS = 4000, 4


def step_of(rows: int = ROWS, fraction: float = 0.0, training: bool = True):
    progress = Progress(fraction=fraction)
    return make_step(strangers(2), batch=make_batch(rows), progress=progress, training=training)


def choose(selection, step, logits=None):
    scores = torch.arange(float(TEACHERS)).expand(ROWS, -1) if logits is None else logits
    return selection(scores, scores.softmax(1), step)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_share_of_the_rows_is_chosen_by_lot(k: int, share: float) -> None:
    weights, chosen = choose(TopK(k, explore=share), step_of())
    greedy = (chosen == torch.tensor([3, 2])[:k]).all(dim=1).double().mean().item()
    by_chance = 1 / TEACHERS if k == 1 else 1 / (TEACHERS * (TEACHERS - 1))
    assert greedy == pytest.approx(1 - share + share * by_chance, abs=0.03)
    torch.testing.assert_close(weights.sum(1), torch.ones(ROWS))
    assert ((weights > 0).sum(1) == k).all()
    worst = (chosen == 0).any(dim=1).double().mean().item()
    assert worst == pytest.approx(share * k / TEACHERS, abs=0.03)


def test_validation_never_explores() -> None:
    selection = TopK(2, explore=1.0)
    expected = choose(TopK(2), step_of())[1]
    assert torch.equal(choose(selection, step_of(training=False))[1], expected)
    assert torch.equal(choose(selection.eval(), step_of())[1], expected)
    assert selection.draws.count.item() == 0


def test_exploration_follows_its_schedule_and_resumes_exactly() -> None:
    selection = TopK(1, explore=Linear(0.8, 0.0))
    shares = [(choose(selection, step_of(fraction=f))[1] != 3).double().mean().item() for f in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.6, 0.3, 0.0], abs=0.03)
    other = TopK(1, explore=Linear(0.8, 0.0))
    other.load_state_dict(selection.state_dict())
    assert torch.equal(choose(other, step_of())[1], choose(selection, step_of())[1])
    assert not torch.equal(choose(other, step_of())[1], choose(selection, step_of(fraction=1.0))[1])


def test_lots_respect_whom_the_gate_excludes() -> None:
    logits = torch.tensor([0.0, EXCLUDED, 1.0, EXCLUDED]).expand(ROWS, -1)
    weights, chosen = choose(TopK(1, explore=1.0), step_of(), logits)
    assert set(chosen.flatten().tolist()) == {0, 2}
    torch.testing.assert_close(weights.sum(1), torch.ones(ROWS))


def test_a_chosen_teacher_with_no_probability_left_has_all_the_weight() -> None:
    logits = torch.tensor([1e4, 0.0, 0.0, -1e4]).expand(ROWS, -1)
    weights, chosen = choose(TopK(1, explore=1.0), step_of(), logits)
    assert torch.equal(weights.argmax(1), chosen[:, 0])
    torch.testing.assert_close(weights.sum(1), torch.ones(ROWS))


def test_without_exploration_nothing_is_drawn() -> None:
    assert TopK(1).state_dict() == {}


@pytest.mark.parametrize("explore", [-0.1, 1.1])
def test_probabilities_only(explore: float) -> None:
    with pytest.raises(ConfigError, match="explore: a probability must stay between 0 and 1"):
        TopK(1, explore=explore)
    with pytest.raises(ConfigError, match="explore: a probability must stay between 0 and 1"):
        choose(TopK(1, explore=Linear(explore, explore)), step_of())


def test_after_training_the_last_temperature_stays() -> None:
    selection, logits = Dense(Cosine(4.0, 0.5)), torch.randn(6, 3)

    def weights(fraction: float, training: bool) -> torch.Tensor:
        return selection(logits, logits.softmax(1), step_of(6, fraction, training))[0]

    torch.testing.assert_close(weights(0.7, training=False), (logits / 4).softmax(1))
    torch.testing.assert_close(weights(0.5, training=True), (logits / 2.25).softmax(1))
    torch.testing.assert_close(weights(0.0, training=False), (logits / 2.25).softmax(1))
    other = Dense(Cosine(4.0, 0.5))
    other.load_state_dict(selection.state_dict())
    torch.testing.assert_close(other(logits, logits.softmax(1))[0], (logits / 2.25).softmax(1))
    assert Dense(2.0).state_dict() == {}
