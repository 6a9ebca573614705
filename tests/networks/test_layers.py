"""Layers that the networks share: values, and the memory order of gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moekd.networks.layers import FlattenMaps, GlobalAverage

ORDERS = [torch.contiguous_format, torch.channels_last]
PLAIN = {FlattenMaps: nn.Flatten(), GlobalAverage: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [FlattenMaps, GlobalAverage])
def test_the_gradient_has_the_order_of_the_maps(kind: type[nn.Module], order: torch.memory_format) -> None:
    maps = torch.randn(3, 4, 5, 6).contiguous(memory_format=order).requires_grad_()
    found = kind()(maps)
    torch.testing.assert_close(found, PLAIN[kind](maps))
    pull = torch.randn(found.shape)
    (gradient,) = torch.autograd.grad((found * pull).sum(), maps)
    (expected,) = torch.autograd.grad((PLAIN[kind](maps) * pull).sum(), maps)
    torch.testing.assert_close(gradient, expected)
    behind_relu = torch.autograd.grad((kind()(maps.relu()) * pull).sum(), maps)[0]
    assert gradient.is_contiguous(memory_format=order) or gradient.stride()[2:] == (0, 0)
    assert behind_relu.is_contiguous(memory_format=order)
    with torch.no_grad():
        torch.testing.assert_close(kind()(maps), found.detach())


@pytest.mark.parametrize("kind", [FlattenMaps, GlobalAverage])
def test_second_derivatives(kind: type[nn.Module]) -> None:
    maps = torch.randn(2, 3, 2, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kind()(x).square(), maps)
    assert torch.autograd.gradgradcheck(lambda x: kind()(x).square(), maps)
