"""Layers below a tap run without data once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moekd.errors import ModelError
from moekd.networks.layers import Chain
from moekd.teachers import Teacher
from moekd.teachers.entry import enter
from moekd.teachers.known_shapes import KnownShapes


class Counts(nn.Linear):
    """Counts its forwards on tensors without data and on others."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.empty = self.full = 0

    def forward(self, x: Tensor) -> Tensor:
        self.empty += x.is_meta
        self.full += not x.is_meta
        return super().forward(x)


class Branches(nn.Module):
    """Two chains, joined and classified; tap `join`."""

    def __init__(self) -> None:
        super().__init__()
        self.left = Chain({"a": Counts(4, 6), "relu": nn.ReLU()}, (4,))
        self.right, self.join, self.out = nn.Sequential(Counts(4, 6)), nn.Identity(), nn.Sequential(Counts(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.join(self.left(x) + self.right(x)))
        return logits


def test_chains_beside_the_way_run_once_a_shape() -> None:
    network = Branches()
    teacher, shapes = Teacher(network, ["x"], ["join"]), KnownShapes(network, "join")
    assert list(shapes.layers) == ["left", "right", "out"]
    activation = torch.randn(5, 6)
    for _ in range(3):
        said = enter(teacher, "join", activation, {"x": torch.zeros(5, 4)}, (), shapes)
        torch.testing.assert_close(said.logits, network.out(activation).detach())
    assert (network.left.a.empty, network.right[0].empty, network.out[0].empty) == (1, 1, 0)
    enter(teacher, "join", torch.randn(2, 6), {"x": torch.zeros(2, 4)}, (), shapes)
    assert network.left.a.empty == 2
    assert not any("forward" in vars(part) for part in network.modules())


def test_members_of_a_chain_run_once() -> None:
    network = nn.Sequential(Counts(4, 6), nn.Sequential(nn.ReLU(), Counts(6, 6)), Counts(6, 3))
    teacher, shapes = Teacher(network, ["x"], ["1.1"]), KnownShapes(network, "1.1")
    assert list(shapes.layers) == ["0", "1.0", "2"]
    for _ in range(3):
        said = enter(teacher, "1.1", torch.ones(5, 6), {"x": torch.zeros(5, 4)}, (), shapes)
    torch.testing.assert_close(said.logits, network[2](torch.ones(5, 6)).detach())
    assert network[0].empty == 1
    assert network[2].empty == 0


def test_forwards_come_back_when_one_fails() -> None:
    network = Branches()
    shapes = KnownShapes(network, "join")
    with pytest.raises(ModelError, match="expected shape"), shapes.used():
        network(torch.zeros(2, 9))
    assert not any("forward" in vars(part) for part in network.modules())
