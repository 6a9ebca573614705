"""Contrast with the hardest negatives: limits, the filter of false negatives, what fills up."""

from __future__ import annotations

import math

import pytest
import torch

from moekd.errors import ConfigError
from moekd.objectives import HardContrastive, hard_negative_infonce, reduce, softmax_contrastive

from .towers import make_towers, pair_of, tower_pool, tower_step

#: Unit vectors at 0, 90 and 45 degrees.
ANGLES = torch.tensor([[1.0, 0.0, 0.70711], [0.0, 1.0, 0.70711], [0.70711, 0.70711, 1.0]])
OWN = torch.arange(3)


def test_all_negatives_are_infonce() -> None:
    scores = torch.randn(5, 5).tanh()
    own = torch.arange(5)
    expected = torch.nn.functional.cross_entropy(9 * scores, own, reduction="none")
    torch.testing.assert_close(hard_negative_infonce(scores, own, 4, 9.0), expected)
    step = tower_step(tower_pool(6))
    both = HardContrastive(k=5, margin=None, scale=9.0)(step)["hard_contrastive"]
    torch.testing.assert_close(both, softmax_contrastive(*pair_of(step.student), 9.0))


def test_by_hand() -> None:
    loss = hard_negative_infonce(ANGLES, OWN, 1, 2.0)
    hardest = math.log(1 + math.exp(2 * (0.70711 - 1)))
    torch.testing.assert_close(loss, torch.full((3,), hardest))


def test_nothing_left_is_nothing_to_learn() -> None:
    scores = ANGLES.clone().requires_grad_()
    loss = hard_negative_infonce(scores, OWN, 2, 5.0, margin=-2.0)
    assert loss.tolist() == [0.0, 0.0, 0.0]
    loss.sum().backward()
    assert scores.grad.isfinite().all()


def test_false_negatives_are_dropped_and_others_fill_up() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.2, 0.1]])
    own = torch.tensor([0])

    def by_hand(*negatives: float) -> float:
        return -math.log(math.exp(0.5) / (math.exp(0.5) + sum(math.exp(s) for s in negatives)))

    for repeat, expected in ((True, by_hand(0.2, 0.1, 0.2)), (False, by_hand(0.2, 0.1))):
        loss = hard_negative_infonce(scores, own, 3, 1.0, margin=0.1, repeat=repeat)
        assert float(loss) == pytest.approx(expected, abs=1e-6)
    assert float(hard_negative_infonce(scores, own, 3, 1.0, margin=0.5)) == pytest.approx(by_hand(0.9, 0.2, 0.1))


def test_equal_rows_are_no_negatives() -> None:
    step = tower_step(tower_pool(6))
    step.batch = dict(step.batch) | {"kind": torch.zeros(6, dtype=torch.int64)}
    assert not HardContrastive(same="kind")(step)["hard_contrastive"].any()


def test_one_direction_or_both() -> None:
    step = tower_step(tower_pool(6))
    image, text = (torch.nn.functional.normalize(part, dim=1) for part in pair_of(step.student))
    own = torch.arange(6)
    one = HardContrastive(k=2, scale=4.0, symmetric=False)(step)["hard_contrastive"]
    torch.testing.assert_close(one, hard_negative_infonce(image @ text.T, own, 2, 4.0, 0.1))
    both = HardContrastive(k=2, scale=4.0)(step)["hard_contrastive"]
    torch.testing.assert_close(both, (one + hard_negative_infonce(text @ image.T, own, 2, 4.0, 0.1)) / 2)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(rows: int) -> None:
    student = make_towers()
    loss = reduce(HardContrastive(k=4)(tower_step(tower_pool(6), student, rows=rows))["hard_contrastive"])
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="k must be at least 1"):
        HardContrastive(k=0)
