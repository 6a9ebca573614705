"""Where the weights of a mask may be multiplied instead of at its tap: behind ReLU and pooling.

A positive weight a channel passes through them, `pool(relu(m x)) = m pool(relu(x))` for m > 0, also in the rounded
numbers of a maximum. Multiplied there, it meets a smaller map, and the backward pass ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..networks.layers import Chain, ChannelsLast, GlobalAverage

#: Layers through which a positive weight a channel passes, and which have no weights.
PASSES: tuple[type[nn.Module], ...] = (
    *(nn.Identity, nn.ReLU, nn.LeakyReLU, ChannelsLast, GlobalAverage),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_IN_ORDER: set[Callable[..., Tensor]] = {nn.Sequential.forward, Chain.forward}


@dataclass(frozen=True)
class LaterTap:
    """A module path behind a tap, and the layers from the tap to there."""

    path: str
    layers: tuple[nn.Module, ...]

    @torch.no_grad()
    def activation(self, at_tap: Tensor) -> Tensor:
        """Return the activation there of the one at the tap."""
        for layer in self.layers:
            at_tap = layer(at_tap)
        return at_tap


def runs_in_order(module: nn.Module) -> bool:
    """Tell whether a module runs its members one after the other and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward in _IN_ORDER and "forward" not in vars(module)


def later_tap(network: nn.Module, tap: str) -> LaterTap | None:
    """Return the last place behind a tap to which positive weights of channels pass, or None where there is none.

    Only layers that follow the tap in the same `nn.Sequential` or `Chain` count: in other modules their order is not
    known.
    """
    parent_path, _, name = tap.rpartition(".")
    parent = network.get_submodule(parent_path)
    if not runs_in_order(parent):
        return None
    children = dict(parent.named_children())
    names = list(children)
    passed: list[str] = []
    for after in names[names.index(name) + 1 :]:
        layer = children[after]
        if type(layer) not in PASSES or getattr(layer, "return_indices", False) or getattr(layer, "inplace", False):
            break
        if isinstance(layer, nn.LeakyReLU) and layer.negative_slope < 0:
            break
        passed.append(after)
    if not passed:
        return None
    path = f"{parent_path}.{passed[-1]}" if parent_path else passed[-1]
    return LaterTap(path, tuple(children[after] for after in passed))
