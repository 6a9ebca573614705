"""Hints: the value, one regressor a teacher, sizes, mistakes."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError, ModelError
from moekd.objectives import FitNets, hint_loss
from moekd.routers import Shapes
from moekd.signals import Signals

from ..builders import descend, make_batch, make_step
from .distillers import VECTORS, make, pool_of, student_of


def test_known_value() -> None:
    loss = hint_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [1.0, 3.0]]))
    torch.testing.assert_close(loss, torch.tensor([2.0, 5.0]))


def test_the_mean_over_rows_is_the_mean_over_all_elements() -> None:
    student, teacher = torch.randn(2, 5, 3, 4, 4)
    torch.testing.assert_close(hint_loss(student, teacher).mean(), torch.nn.functional.mse_loss(student, teacher))


def test_every_teacher_has_its_own_regressor() -> None:
    objective = make("fitnets")
    assert list(objective.regressors) == ["t0:fc1", "t1:fc1", "t2:fc1"]
    step = make_step(pool_of("fitnets"), None, make_batch(5), student_of("fitnets"), features=True)
    mine = step.student.features["fc1"]
    for name, signals in step.teachers.items():
        expected = hint_loss(objective.regressors[f"{name}:fc1"](mine), signals.features["fc1"])
        torch.testing.assert_close(objective.pair_with(name, step.student, signals, step.batch), expected)


def test_taps_by_teacher_with_different_widths() -> None:
    shapes = Shapes(taps={"fc1": (12,)}, teachers={"a": {"x.y": (7,)}, "b": {"z": (3, 5, 5)}, "c": {}})
    pooled = Shapes(taps={"conv": (4, 9, 9)}, teachers=shapes.teachers)
    objective = FitNets("conv", {"a": "x.y", "b/mask": "z"}, shapes=pooled)
    student = Signals(features={"conv": torch.randn(2, 4, 9, 9)})
    assert objective.pair_with("a/any", student, Signals(features={"x.y": torch.randn(2, 7)}), {}).shape == (2,)
    assert objective.pair_with("b/mask", student, Signals(features={"z": torch.randn(2, 3, 5, 5)}), {}).shape == (2,)
    with pytest.raises(ModelError, match=r"fitnets\.teacher_tap names no tap for 'b'"):
        objective.pair_with("b", student, Signals(), {})
    with pytest.raises(
        ConfigError, match=r"no regressor maps student activations \[12\] to teacher activations \[3, 5"
    ):
        FitNets("fc1", {"b": "z"}, shapes=shapes)


def test_one_teacher_has_one_regressor() -> None:
    assert list(FitNets("fc1", {"t0": "fc1", "t1": "fc1"}, teacher="t1", shapes=VECTORS).regressors) == ["t1:fc1"]


def test_training_it_lowers_the_loss_and_leaves_layers_above_the_tap() -> None:
    objective, student, pool, values = make("fitnets"), student_of("fitnets"), pool_of("fitnets", 1), []
    for _ in range(15):
        loss = objective(make_step(pool, None, make_batch(8), student, features=True))["fitnets"].mean()
        loss.backward()
        values.append(loss.item())
        assert student.network.out.weight.grad is None
        descend(objective, 0.05)
        descend(student, 0.05)
    assert values[-1] < values[0] / 2


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"fitnets\.student_tap: .fc3. is no tap of the student"):
        FitNets("fc3", "fc1", shapes=VECTORS)
    with pytest.raises(ConfigError, match=r"fitnets\.teacher_tap: no teacher has a tap 'nowhere'"):
        FitNets("fc1", "nowhere", shapes=VECTORS)
    with pytest.raises(ConfigError, match="no teacher 't9'; did you mean 't"):
        FitNets("fc1", {"t9": "fc1"}, shapes=VECTORS)
    with pytest.raises(ConfigError, match="'fc9' is no tap of the teacher 't0'"):
        FitNets("fc1", "fc9", teacher="t0", shapes=VECTORS)
    with pytest.raises(ConfigError, match="give 'shapes'"):
        FitNets("fc1", "fc1")
    with pytest.raises(ModelError, match=r"activations \(2, 3\) and \(2, 4\) differ"):
        hint_loss(torch.zeros(2, 3), torch.zeros(2, 4))
