"""Gates: published sizes, the affine map, dense decisions an image, detached input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moekd.errors import ModelError
from moekd.model import Model
from moekd.routers import GATES, DenseInstanceGate, InstanceGate, UniformGate
from moekd.signals import Signals

from ..builders import CLASSES, DenseMaps, make_pool, make_step, randomise


@pytest.mark.parametrize(("classes", "count"), [(10, 304), (8, 212), (141, 41_176)])
def test_published_parameters(classes: int, count: int) -> None:
    assert sum(p.numel() for p in InstanceGate(classes, 4).parameters()) == count


def test_published_parameters_for_dense_logits() -> None:
    assert sum(p.numel() for p in DenseInstanceGate(41, 4).parameters()) == 4_596


def test_without_activation_the_gate_is_one_affine_map() -> None:
    gate = randomise(InstanceGate(5, 3), 0)
    weight = gate.fc2.weight @ gate.fc1.weight
    bias = gate.fc2.weight @ gate.fc1.bias + gate.fc2.bias
    x = torch.randn(7, 5)
    torch.testing.assert_close(gate.score(x), x @ weight.T + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("gelu", nn.functional.gelu)])
def test_activation_between_the_layers(activation, function) -> None:
    gate, x = randomise(InstanceGate(5, 3, activation=activation), 0), torch.randn(7, 5)
    torch.testing.assert_close(gate.score(x), gate.fc2(function(gate.fc1(x))))


def test_hidden_factor() -> None:
    assert InstanceGate(5, 3, hidden_factor=4).fc1.out_features == 20


@pytest.mark.parametrize("detach", [False, True])
def test_input_can_be_detached(detach: bool) -> None:
    step = make_step(make_pool(masked=False))
    scores = randomise(InstanceGate(CLASSES, 3, detach_input=detach), 0)(step)
    assert scores.shape == (6, 3)
    scores.sum().backward()
    assert (step.models.student.network.fc1.weight.grad is None) == detach


@pytest.mark.parametrize("detach", [False, True])
def test_dense_gate_decides_once_an_image(detach: bool) -> None:
    student = Model(randomise(DenseMaps(), 1), ["image"])
    gate = randomise(DenseInstanceGate(CLASSES, 3, detach_input=detach), 0)
    scores = gate(make_step(make_pool(masked=False), student=student))
    assert scores.shape == (6, 3)
    scores.sum().backward()
    assert (student.network.conv.weight.grad is None) == detach


def test_dense_gate_equals_its_layers_one_by_one() -> None:
    gate, x = randomise(DenseInstanceGate(2, 3), 0), torch.randn(2, 2, 9, 7)
    first, _, second, *_, last = gate.layers
    hidden = nn.functional.conv2d(first(x).relu(), second.weight, second.bias, stride=2, padding=1, groups=4).relu()
    torch.testing.assert_close(gate.score(x), last(hidden.mean(dim=(2, 3))))


def test_uniform_gate_prefers_nobody() -> None:
    step = make_step(make_pool(masked=False))
    assert torch.equal(UniformGate(3)(step), torch.zeros(6, 3))
    assert not list(UniformGate(3).parameters())


def test_gates_need_logits() -> None:
    class Headless(Model):
        def interpret(self, output: torch.Tensor) -> Signals:
            return Signals(embeddings={"left": output})

    step = make_step(make_pool(masked=False), student=Headless(nn.Identity(), ["left"]))
    for gate in (InstanceGate(CLASSES, 2), DenseInstanceGate(CLASSES, 2), UniformGate(2)):
        with pytest.raises(ModelError, match="gate needs logits"):
            gate(step)


def test_injected_sizes_are_no_options() -> None:
    assert set(GATES.parameters("instance")) == {"hidden_factor", "activation", "detach_input"}
    assert set(GATES.parameters("uniform")) == {"granularity", "mask_field"}
