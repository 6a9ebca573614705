"""A model maps a batch to signals; its hooks come and go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.errors import DataError, ModelError
from moekd.model import Model, find_module, tapped
from moekd.signals import Signals

from .builders import Fusion, Maps, Vectors, hook_count, make_batch, randomise


class Says(nn.Module):
    """A network that returns what it was told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.body = answer, nn.Identity()

    def forward(self, x: Tensor) -> Any:
        self.body(x)
        return self.answer


def test_inputs_in_call_order() -> None:
    network, batch = randomise(Fusion(), 0), make_batch()
    torch.testing.assert_close(Model(network, ["left", "right"])(batch).logits, network(batch["left"], batch["right"]))


def test_missing_field_is_refused_with_the_nearest_or_all() -> None:
    with pytest.raises(DataError, match="reads field 'image', which the data set does not have; did you mean 'imag'"):
        Model(Maps(), ["image"])({"imag": torch.zeros(1)})
    with pytest.raises(DataError, match="which the data set does not have; fields: a, b"):
        Model(Maps(), ["image"])({"a": 0, "b": 1})


def test_taps_with_dots_are_recorded() -> None:
    network, batch = randomise(Fusion(), 0), make_batch()
    model = Model(network, ["left", "right"], taps=["join", "head.first"])
    signals = model(batch)
    assert list(signals.features) == ["join", "head.first"]
    torch.testing.assert_close(network.head.first(signals.features["join"]), signals.features["head.first"])
    torch.testing.assert_close(network.head(signals.features["join"]), signals.logits)
    assert signals.features["join"].requires_grad


def test_taps_can_be_replaced_for_a_call() -> None:
    model = Model(randomise(Fusion(), 0), ["left", "right"], taps=["join"])
    assert list(model(make_batch(), taps=["left", "head.out"]).features) == ["left", "head.out"]
    assert model(make_batch(), taps=()).features == {}
    assert list(model(make_batch()).features) == ["join"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("head.frist", "did you mean 'head.first'"),
        ("jion", "did you mean 'join'"),
        ("", "modules: left, right, join, head"),
        ("zzz", "modules: left, right, join, head"),
    ],
)
def test_unknown_tap_lists_the_nearest(path: str, hint: str) -> None:
    with pytest.raises(ModelError, match=f"tap '{path}' is no module of Fusion; {hint}"):
        Model(Fusion(), ["left", "right"], taps=["join", path])
    with pytest.raises(ModelError, match=hint):
        find_module(Fusion(), path)


def test_hooks_are_gone_after_a_forward_and_after_a_failure() -> None:
    model = Model(Vectors(), ["left"], taps=["fc1", "fc2"])
    model.network.fc2.register_forward_hook(lambda m, a, out: None)
    assert hook_count(model) == 1
    for _ in range(3):
        model(make_batch())
    assert hook_count(model) == 1
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model({"left": torch.zeros(2, 3)})
    with pytest.raises(ModelError, match="tap 'fc9' is no module"):
        model(make_batch(), taps=["fc1", "fc9"])
    assert hook_count(model) == 1


def test_a_returned_tensor_replaces_the_activation() -> None:
    network, x = randomise(Vectors(), 0), torch.randn(3, 8)
    with tapped(network, ["fc2"], lambda tap, out: torch.zeros_like(out)):
        zeroed = network(x)
    torch.testing.assert_close(zeroed, network.out.bias.expand(3, 4))


def test_a_tap_without_a_tensor_is_refused() -> None:
    network = nn.Sequential(nn.LSTM(8, 4))
    with pytest.raises(ModelError, match=r"tap '0' \(LSTM\) gives tuple, no tensor; tap a submodule"):
        Model(network, ["left"], taps=["0"])(make_batch())


def test_dict_output() -> None:
    logits, box = torch.zeros(6, 4), torch.ones(6, 2)
    signals = Model(Says({"logits": logits, "box": box}), ["left"], taps=["body"])(make_batch())
    assert signals.logits is logits
    assert signals.heads == {"box": box}
    assert list(signals.features) == ["body"]
    assert Model(Says({"box": box}), ["left"])(make_batch()).logits is None


def test_signals_output_is_not_changed() -> None:
    said = Signals(torch.zeros(6, 4), {"own": torch.ones(6, 1)})
    model = Model(Says(said), ["left"], taps=["body"], heads={"x": nn.Identity()})
    signals = model(make_batch())
    assert set(signals.features) == {"own", "body"}
    assert set(signals.heads) == {"x"}
    assert set(said.features) == {"own"}
    assert said.heads == {}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((torch.zeros(1), torch.zeros(1)), "Says returned tuple; expected logits, a dict"),
        (None, "Says returned NoneType"),
        (
            {"logits": torch.zeros(1), "states": (1, 2)},
            "Says returned a dict with more than tensors: {'states': 'tuple'}",
        ),
    ],
)
def test_other_outputs_are_refused(answer: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Model(Says(answer), ["left"])(make_batch())


def test_heads_read_logits_or_taps_and_train() -> None:
    heads = {"far": nn.Linear(4, 2), "near": nn.Linear(12, 3)}
    model = Model(randomise(Vectors(), 0), ["left"], ["fc1"], heads, {"near": "fc1"})
    signals = model(make_batch())
    torch.testing.assert_close(signals.heads["far"], heads["far"](signals.logits))
    torch.testing.assert_close(signals.heads["near"], heads["near"](signals.features["fc1"]))
    assert {"heads.far.weight", "heads.near.bias"} <= set(dict(model.named_parameters()))


def test_a_head_without_its_tap_is_refused() -> None:
    model = Model(Vectors(), ["left"], ["fc1"], {"near": nn.Linear(12, 3)}, {"near": "fc2"})
    with pytest.raises(
        ModelError, match="head 'near' needs tap 'fc2', which the model does not have; did you mean 'fc1'"
    ):
        model(make_batch())
