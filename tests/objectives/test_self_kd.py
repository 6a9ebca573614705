"""A model's own heads as teacher and student: the value, its floor, and who gets a gradient."""

from __future__ import annotations

import math

import pytest
import torch

from moekd.errors import ModelError
from moekd.model import Model
from moekd.objectives import SelfKD, softened_cross_entropy
from moekd.signals import Signals
from moekd.step import Models, Step
from moekd.teachers import TeacherPool


class TwoHeads(torch.nn.Module):
    """Two linear heads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Signals:
        """Return `a` as a head and `b` as the logits."""
        return Signals(self.b(x), heads={"a": self.a(x)})


def step(network: TwoHeads) -> Step:
    return Step({"x": torch.randn(5, 4), "id": torch.arange(5)}, Models(Model(network, ["x"]), TeacherPool({})))


def test_a_value_by_hand() -> None:
    loss = softened_cross_entropy(torch.zeros(1, 2), torch.tensor([[5.0, 0.0]]), 5.0)
    torch.testing.assert_close(loss, torch.tensor([math.log(2)]))
    p = 1 / (1 + math.exp(-1))
    same = softened_cross_entropy(torch.tensor([[5.0, 0.0]]), torch.tensor([[5.0, 0.0]]), 5.0)
    torch.testing.assert_close(same, torch.tensor([-p * math.log(p) - (1 - p) * math.log(1 - p)]))
    with pytest.raises(ModelError, match="have to score the same classes"):
        softened_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 3), 5.0)


@pytest.mark.parametrize("target_grad", [False, True])
def test_the_target_learns_only_where_asked(target_grad: bool) -> None:
    network = TwoHeads()
    SelfKD(head="a", temperature=2, target_grad=target_grad)(step(network))["self_kd"].sum().backward()
    assert network.a.weight.grad.abs().sum() > 0
    assert (network.b.weight.grad is not None) == target_grad


def test_the_factor_of_the_temperature() -> None:
    network, torch_seed = TwoHeads(), 3
    losses = []
    for squared in (False, True):
        torch.manual_seed(torch_seed)
        losses.append(SelfKD(head="a", temperature=3, tau_squared=squared)(step(network))["self_kd"])
    torch.testing.assert_close(losses[1], 9 * losses[0])
    with pytest.raises(ValueError, match="must be positive"):
        SelfKD(temperature=0)
    with pytest.raises(ModelError, match="self_kd needs the head 'c'"):
        SelfKD(head="c")(step(network))
