"""MGDFR: permuted and frozen channels, their ranking, and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moekd.data.arrays import ArrayField, ArraySplit, to_float
from moekd.data.dataset import FieldSpec
from moekd.errors import ConfigError
from moekd.model import Model, tapped
from moekd.objectives import (
    DecisiveFeatures,
    LogitAgreement,
    freeze_channels,
    kd_kl,
    least_decisive,
    permute_channels,
    reduce,
)
from moekd.objectives.mgdfr import permutation_distances, takes_more_rows
from moekd.routers import Shapes
from moekd.teachers import Teacher, TeacherPool

from ..builders import WIDTH, LateFusion, Maps, Vectors, hook_count, make_batch, make_step, make_student, randomise

SHAPES = Shapes(teachers={"t0": {"fc1": (WIDTH,), "conv1": (WIDTH, 8, 8)}, "twin": {}})


def train_split(rows: int = 40) -> ArraySplit:
    batch = make_batch(rows, seed=5)
    fields = {
        name: ArrayField(batch[name].numpy(), FieldSpec(tuple(batch[name].shape[1:]), "float32", "vector"), to_float)
        for name in ("left", "right", "image")
    }
    return ArraySplit("train", np.arange(rows), batch["label"].numpy(), fields)


def pool() -> TeacherPool:
    teachers = {
        "t0": Teacher(randomise(Vectors(10), 20), ["right"], ["fc1"], name="t0"),
        "twin": Teacher(randomise(Vectors(), 21), ["left"], name="twin"),
    }
    return TeacherPool(teachers).requires_grad_(False)


def objective(**options: object) -> DecisiveFeatures:
    given = {"partner": "twin", "permutations": 2, "rows": 16, "shapes": SHAPES, "train_split": train_split()} | options
    return DecisiveFeatures("t0", "fc1", **given)


def test_permuting_and_freezing_by_hand() -> None:
    x = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0], [3.0, 30.0, 300.0]])
    order = torch.tensor([2, 0, 1])
    expected = torch.tensor([[1.0, 30.0, 100.0], [2.0, 10.0, 200.0], [3.0, 20.0, 300.0]])
    assert torch.equal(permute_channels(x, [1], order), expected)
    frozen = freeze_channels(x, torch.tensor([0, 2]))
    assert torch.equal(frozen, torch.tensor([[2.0, 10.0, 200.0], [2.0, 20.0, 200.0], [2.0, 30.0, 200.0]]))
    assert torch.equal(x[0], torch.tensor([1.0, 10.0, 100.0])), "the activation itself stays"
    maps = torch.randn(4, 3, 2, 2)
    assert torch.equal(freeze_channels(maps, torch.tensor([1]))[:, 1], maps[:, 1].mean(0).expand(4, 2, 2))
    assert freeze_channels(x, torch.tensor([], dtype=torch.long)) is x


def test_the_least_decisive_channels_are_removed() -> None:
    salience = torch.tensor([0.5, 0.0, 1.0, 0.2, 0.0])
    assert least_decisive(salience, 0.75).tolist() == [1, 4, 3]
    assert least_decisive(salience, 0.0).tolist() == []


@pytest.mark.parametrize("shared", [True, False])
def test_distances_equal_a_loop(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moekd.objectives.mgdfr.CHUNK", 5 * 6 * WIDTH)
    teacher, batch, goal = pool().teacher("t0"), make_batch(6), torch.randn(6, 4)
    orders = torch.stack([torch.randperm(6) for _ in range(WIDTH)])
    found = permutation_distances(teacher, "fc1", batch, goal, orders, shared)
    for j in range(WIDTH):
        with tapped(teacher.network, ["fc1"], lambda tap, x, j=j: permute_channels(x, [j], orders[j])):
            logits = teacher(batch, ()).logits
        torch.testing.assert_close(found[j], (logits - goal).square().mean())


def test_networks_whose_rows_meet_another_branch_get_their_inputs_repeated() -> None:
    batch = make_batch(6)
    assert takes_more_rows(pool().teacher("t0"), "fc1", batch, WIDTH)
    late = Teacher(randomise(LateFusion(), 3), ["left", "right"], ["left"], name="late")
    assert not takes_more_rows(late, "left", batch, WIDTH)
    maps = Teacher(randomise(Maps(), 3), ["image"], ["conv1"], name="maps")
    assert takes_more_rows(maps, "conv1", batch, WIDTH)


def test_a_channel_that_nothing_reads_ranks_lowest_and_one_that_decides_highest() -> None:
    models = pool()
    network = models.teacher("t0").network
    with torch.no_grad():
        network.fc2.weight.mul_(0.01)
        network.fc2.weight[:, 3] = 0.0
        network.fc2.weight[:, 7] = 5.0
        network.fc1.bias.add_(5.0)
    loss = objective(form="benchmark", partner="t0")
    loss.rank(models.teacher("t0"), models.teacher("t0"))
    assert loss.ranked
    assert loss.salience.argmax() == 7
    assert loss.salience.argmin() == 3
    assert loss.salience.min() == 0
    assert loss.salience.max() == 1


def test_without_removal_it_is_distillation_from_the_plain_teacher() -> None:
    batch, models = make_batch(6), pool()
    step = make_step(models, None, batch)
    plain = kd_kl(step.student.logits, models.teacher("t0")(batch).logits, 4.0)
    torch.testing.assert_close(objective(ratio=0.0, form="benchmark")(step)["mgdfr"], plain)
    original = objective(ratio=0.0)(step)["mgdfr"]
    plain = kd_kl(step.student.logits, models.teacher("t0")(batch).logits, 1.0)
    torch.testing.assert_close(original, plain / 4)


def test_the_loss_is_that_of_the_frozen_teacher() -> None:
    batch, models = make_batch(6), pool()
    loss = objective()
    hooks = hook_count(models)
    found = loss(make_step(models, None, batch))["mgdfr"]
    assert hook_count(models) == hooks
    removed = least_decisive(loss.salience, 0.75)
    assert len(removed) == 9
    with tapped(models.teacher("t0").network, ["fc1"], lambda tap, x: freeze_channels(x, removed)):
        goal = models.teacher("t0")(batch).logits
    torch.testing.assert_close(found, kd_kl(make_student()(batch).logits, goal, 1.0) / 4)


def test_only_the_student_gets_a_gradient() -> None:
    models, student = pool(), make_student()
    reduce(objective()(make_step(models, None, make_batch(6), student))["mgdfr"]).backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in models.parameters())


def test_the_ranking_is_made_once_is_reproducible_and_is_saved() -> None:
    models = pool()
    first, second = objective(), objective()
    for loss in (first, second):
        loss(make_step(models, None, make_batch(6)))
    assert torch.equal(first.salience, second.salience)
    other = objective(seed=9)
    other.load_state_dict(first.state_dict())
    assert other.ranked
    before = other.salience.clone()
    other(make_step(models, None, make_batch(6)))
    assert torch.equal(other.salience, before)


def test_modes_are_restored() -> None:
    models, student = pool(), make_student()
    student.train()
    objective(partner="student")(make_step(models, None, make_batch(6), student))
    assert student.training
    assert not models.teacher("t0").training


def test_agreement_is_symmetric_and_trains_both() -> None:
    models = pool()
    models.teacher("t0").thaw()
    student: Model = make_student()
    step = make_step(models, None, make_batch(6), student, variants=["t0"])
    loss = LogitAgreement(("student", "t0"))(step)["logit_agreement"]
    other = LogitAgreement(("t0", "student"))(step)["logit_agreement"]
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(loss, (step.student.logits - step.signals("t0").logits).square().mean(1))
    reduce(loss).backward()
    assert all(p.grad is not None for p in [*student.parameters(), *models.teacher("t0").parameters()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": None}, "give 'train_split'"),
        ({"shapes": None}, "give 'shapes'"),
        ({"shapes": Shapes(teachers={"t1": {}})}, "'t0' is no teacher; did you mean 't1'"),
        ({"shapes": Shapes(teachers={"t0": {"fc2": (3,)}})}, "'fc1' is no tap of the teacher 't0'"),
    ],
)
def test_what_is_missing_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective(**options)


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"permutations": 0}, {"rows": 1}, {"temperature": 0.0}])
def test_numbers_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"found|too small"):
        objective(**options)
