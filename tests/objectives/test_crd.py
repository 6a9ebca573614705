"""Contrastive distillation: a loop, negatives of other classes, banks that move in training only."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from moekd.data.few_labels import FewLabels
from moekd.errors import ConfigError
from moekd.objectives import ContrastiveDistillation, contrastive_loss, reduce
from moekd.objectives.memory_bank import MemoryBank, NegativeSampler
from moekd.signals import Signals

from ..builders import make_batch, make_step
from .distillers import VECTORS, pool_of, student_of

IDS = np.array([7, 3, 100, 101, 102, 103, 104, 105, 50, 2])
LABELS = np.array([0, 1, 0, 1, 2, 0, 1, 2, 2, 0])


class Ids:
    """The part of a split that the banks read."""

    def __init__(self, ids: np.ndarray = IDS, labels: np.ndarray | None = LABELS) -> None:
        self.ids, self.labels = ids, labels


def objective(**options: object) -> ContrastiveDistillation:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        given = {"negatives": 5, "embed_dim": 6, "shapes": VECTORS, "train_split": Ids()} | options
        return ContrastiveDistillation("fc1", "fc1", **given)


def pair() -> tuple[Signals, Signals]:
    return tuple(Signals(features={"fc1": torch.randn(6, 12, requires_grad=True)}) for _ in range(2))


def test_loss_equals_a_loop() -> None:
    positive, negative = torch.rand(3, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    losses, noise = contrastive_loss(positive.log(), negative.log(), 10), 4 / 10
    for b in range(3):
        expected = -math.log(positive[b] / (positive[b] + noise + 1e-7))
        expected -= sum(math.log(noise / (x + noise + 1e-7)) for x in negative[b].tolist())
        assert losses[b].item() == pytest.approx(expected, abs=1e-12)


def test_samples_are_found_and_negatives_are_of_other_classes() -> None:
    sampler = NegativeSampler(IDS, LABELS)
    rows, known = sampler.rows(torch.from_numpy(np.append(IDS, [999, 4])))
    assert known.tolist() == [True] * 10 + [False] * 2
    assert torch.equal(sampler.ids[rows[:10]], torch.from_numpy(IDS))
    drawn, some = sampler.draw(rows[:10], known[:10], 200)
    assert some.all()
    label_of = dict(zip(IDS.tolist(), LABELS.tolist(), strict=True))
    for anchor, negatives in zip(IDS.tolist(), sampler.ids[drawn].tolist(), strict=True):
        assert {label_of[n] for n in negatives} == {0, 1, 2} - {label_of[anchor]}
        assert set(negatives) == {i for i in label_of if label_of[i] != label_of[anchor]}, "every one can be drawn"


@pytest.mark.parametrize("labels", [None, np.full(10, -1)])
def test_without_labels_all_others_are_negatives(labels: np.ndarray | None) -> None:
    sampler = NegativeSampler(IDS, labels)
    rows, known = sampler.rows(torch.from_numpy(IDS))
    drawn, _ = sampler.draw(rows, known, 300)
    for row, negatives in zip(rows.tolist(), drawn.tolist(), strict=True):
        assert set(negatives) == set(range(10)) - {row}


def test_one_class_has_no_negatives() -> None:
    loss = objective(train_split=Ids(IDS, np.zeros(10, dtype=int)))
    mine, other = pair()
    values = loss.pair_with("t0", mine, other, {"id": torch.arange(100, 106)})
    reduce(values).backward()
    assert values.isfinite().all()
    assert mine.features["fc1"].grad.isfinite().all()


@pytest.mark.parametrize("count", [1, 40])
def test_products_in_both_ways(count: int) -> None:
    bank, embedding = MemoryBank(20, 4), torch.randn(3, 4)
    index = torch.randint(0, 20, (3, count))
    expected = torch.stack([torch.stack([embedding[b] @ bank.bank[i] for i in index[b]]) for b in range(3)])
    torch.testing.assert_close(bank.products(embedding, index), expected)


def test_forward_uses_the_other_models_bank_then_moves_both() -> None:
    loss, (mine, other) = objective(), pair()
    part, ids = loss.embeddings["t0:fc1"], torch.arange(100, 106)
    before = copy.deepcopy(part.state_dict())
    torch.manual_seed(0)
    values = loss.pair_with("t0", mine, other, {"id": ids})
    rows, known = loss.sampler.rows(ids)
    torch.manual_seed(0)
    drawn, _ = loss.sampler.draw(rows, known, 5)
    index, expected = torch.cat([rows[:, None], drawn], dim=1), torch.zeros(6)
    u, v = (
        torch.nn.functional.normalize(f, dim=1)
        for f in (part.student(mine.features["fc1"]), part.teacher(other.features["fc1"]))
    )
    for side, (e, bank) in enumerate([(u, before["teacher_bank.bank"]), (v, before["student_bank.bank"])]):
        raw = torch.exp(torch.stack([bank[index[b]] @ e[b] for b in range(6)]) / 0.07)
        z = raw.mean() * 10
        torch.testing.assert_close(part.log_normaliser[side], z.detach().log())
        expected = expected + contrastive_loss((raw[:, 0] / z).log(), (raw[:, 1:] / z).log(), 10)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    moved = torch.nn.functional.normalize(0.5 * before["student_bank.bank"][rows] + 0.5 * u, dim=1)
    torch.testing.assert_close(part.student_bank.bank[rows], moved)
    rest = torch.ones(10, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(part.student_bank.bank[rest], before["student_bank.bank"][rest])
    normaliser = part.log_normaliser.clone()
    loss.pair_with("t0", mine, other, {"id": ids})
    assert torch.equal(part.log_normaliser, normaliser), "Z is constant after the first batch"


def test_validation_leaves_everything_as_it_is() -> None:
    loss, (mine, other) = objective().eval(), pair()
    before = copy.deepcopy(loss.state_dict())
    values = loss.pair_with("t0", mine, other, {"id": torch.tensor([100, 101, 900, 901, 902, 903])})
    assert values.isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
    assert any("bank" in key for key in before)


def test_both_embeddings_learn_and_so_does_the_student() -> None:
    pool, student, loss = pool_of("crd"), student_of("crd"), objective()
    for name in pool.names:
        pool.teacher(name).thaw()
    batch = make_batch(6) | {"id": torch.arange(100, 106)}
    reduce(loss(make_step(pool, None, batch, student, features=True))["crd"]).backward()
    assert all(p.grad is None for p in pool.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert student.network.fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches_are_finite(rows: int) -> None:
    loss, (mine, other) = objective(), pair()
    values = loss.pair_with(
        "t0", mine.select(slice(rows)), other.select(slice(rows)), {"id": torch.arange(100, 100 + rows)}
    )
    assert values.shape == (rows,)
    assert values.isfinite().all()
    assert all(value.isfinite().all() for value in loss.state_dict().values())


def test_hidden_labels_stay_hidden() -> None:
    split = object.__new__(FewLabels)
    split.ids, split.labels, split.mask = IDS, LABELS, np.arange(10) < 4
    sampler = objective(train_split=split).sampler
    rows, _ = sampler.rows(torch.from_numpy(IDS))
    assert sampler.block_size[rows].tolist() == [2, 2, 2, 2, 1, 1, 1, 1, 1, 1]


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="crd needs the training split"):
        objective(train_split=None)
    with pytest.raises(ConfigError, match="needs training samples, and there are none"):
        NegativeSampler(np.array([], dtype=np.int64), None)
    with pytest.raises(ValueError, match="negatives and embed_dim must be at least 1"):
        objective(negatives=0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        objective(temperature=0)
