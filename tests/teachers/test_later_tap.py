"""Masks that are multiplied behind ReLU and pooling: the same variants, gradients and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.networks import AudioCnn
from moekd.networks.layers import Chain
from moekd.teachers import FactorisedAttentionMask, FeatureAttentionMask, Mask, Teacher
from moekd.teachers.entry import activations_at, enter
from moekd.teachers.later_tap import later_tap
from moekd.teachers.masked_entry import MaskedEntry

from ..builders import Ones, randomise

PASSED: list[nn.Module] = [
    nn.ReLU(),
    nn.LeakyReLU(0.1),
    nn.Identity(),
    nn.MaxPool2d(3, stride=2, padding=1),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.AvgPool2d(2, padding=1),
    nn.AdaptiveAvgPool2d(3),
    nn.AdaptiveMaxPool2d((2, 3)),
]
STOPPED: list[nn.Module] = [
    nn.BatchNorm2d(12),
    nn.ReLU6(),
    nn.Sigmoid(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(-0.1),
    nn.Flatten(),
    nn.Conv2d(12, 12, 1),
    nn.AdaptiveMaxPool2d(2, return_indices=True),
]


def network(*layers: nn.Module) -> nn.Sequential:
    """Return a network whose tap is `0`."""
    ends = [nn.AdaptiveAvgPool2d(2), nn.Conv2d(12, 3, 2), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(1, 12, 3), *layers, nn.BatchNorm2d(12), *ends)


def entry(layers: nn.Sequential, mask: Mask, tap: str = "0") -> MaskedEntry:
    teacher = Teacher(randomise(layers, seed=3).eval().requires_grad_(False), ["image"], [tap], name="t")
    return MaskedEntry(teacher, tap, mask)


@pytest.mark.parametrize("kind", [FeatureAttentionMask, FactorisedAttentionMask])
@pytest.mark.parametrize("layer", PASSED, ids=lambda layer: str(layer)[:24])
@pytest.mark.parametrize("way", ["live", "kept"])
def test_the_variant_is_that_of_the_tap(way: str, layer: nn.Module, kind: type[Mask]) -> None:
    variant = entry(network(layer, nn.ReLU()), randomise(kind(12, spatial=True), seed=1).eval())
    batch = {"image": torch.randn(5, 1, 11, 9)}
    assert variant.place is not None
    assert variant.taps == ["0", "2"]
    activations = activations_at(variant.teacher, variant.taps, batch)
    at_tap = enter(variant.teacher, "0", variant.mask.adapt(activations["0"]), batch)
    known = activations if way == "live" else variant.kept(activations)
    assert ("0" in known) == (way == "live" or kind is FeatureAttentionMask)
    found = []
    for said in (variant(known, batch), at_tap):
        found.append([said.logits, *torch.autograd.grad(said.logits.square().sum(), variant.mask.parameters())])
    for later, whole in zip(*found, strict=True):
        torch.testing.assert_close(later, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", STOPPED, ids=lambda layer: str(layer)[:24])
def test_other_layers_stop_it(layer: nn.Module) -> None:
    assert later_tap(nn.Sequential(nn.Conv2d(1, 12, 3), layer), "0") is None
    place = later_tap(nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), layer), "0")
    assert place is not None
    assert place.path == "1"


def test_only_modules_that_run_in_order_are_passed() -> None:
    class Own(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return self[0](x)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(1, 12, 3), nn.ReLU()

    assert later_tap(Own(nn.Conv2d(1, 12, 3), nn.ReLU()), "0") is None
    assert later_tap(Branches(), "conv") is None
    nested = nn.Sequential(Chain({"conv": nn.Conv2d(1, 12, 3), "relu": nn.ReLU()}, (1, None, None)), nn.ReLU())
    place = later_tap(nested, "0.conv")
    assert place is not None
    assert place.path == "0.relu"


def test_the_published_audio_network() -> None:
    places = {tap: later_tap(AudioCnn(10), tap) for tap in ("conv1", "conv2", "conv3", "fc1")}
    assert {tap: place and place.path for tap, place in places.items()} == {
        "conv1": "relu1",
        "conv2": "relu2",
        "conv3": "conv3_maxpool",
        "fc1": None,
    }


def test_other_masks_stay_at_their_tap() -> None:
    class Shifts(FeatureAttentionMask):
        def adapt(self, activation: Tensor) -> Tensor:
            return activation + 1

    for mask in (Shifts(12, spatial=True), Ones(12, spatial=True)):
        assert entry(network(nn.ReLU()), mask).place is None
    plain = FeatureAttentionMask(12, spatial=True)
    recorded = MaskedEntry(Teacher(network(nn.ReLU()), ["image"], ["0"]), "0", plain, features=True)
    assert recorded.place is None
    assert recorded.taps == ["0"]


def test_maps_keep_their_memory_order() -> None:
    variant = entry(network(nn.ReLU()), FactorisedAttentionMask(12, spatial=True))
    image = torch.randn(4, 1, 9, 9)
    for order in (torch.contiguous_format, torch.channels_last):
        activations = {tap: torch.randn(4, 12, 7, 7).contiguous(memory_format=order) for tap in variant.taps}
        kept = variant.kept(activations)
        assert set(kept) == {"0 mean", "1 BHWC" if order is torch.channels_last else "1"}
        assert all(value.is_contiguous() for value in kept.values())
        torch.testing.assert_close(
            variant(kept, {"image": image}).logits, variant(activations, {"image": image}).logits
        )
