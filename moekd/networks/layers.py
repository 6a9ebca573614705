"""Pieces that the networks share: named chains of layers, and checks of what they are given.

Activations are never changed in place, because a tap may hold the output of any module. Rows of a batch never meet, and
no layer remembers the batch size, so that rows may be appended to the batch at any tap of a chain.

Shapes: B batch, C channels, D features, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError

Layers = dict[str, nn.Module]
Shape = tuple[int | None, ...]


class Chain(nn.Sequential):
    """Named layers, run in order after a check of the input; every name is a tap.

    Args:
        layers: modules by name.
        input_shape: shape of one sample; None where any size will do.
        min_size: smallest size of the axes that are None.
        label: how messages call the input; default "<class> input".
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        input_shape: Shape,
        *,
        min_size: int = 1,
        label: str | None = None,
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.input_shape, self.min_size = input_shape, min_size
        self.label = label or f"{type(self).__name__} input"

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers.

        Raises:
            ModelError: the input does not have the shape that the network takes.
        """
        check_input(self.label, x, self.input_shape, self.min_size)
        return super().forward(x)


class ChannelsLast(nn.Module):
    """Puts a map `[B, C, H, W]` into the memory order `[B, H, W, C]`, which the layers behind it keep.

    Shapes and values stay the same; small convolutions run faster on a CPU in this order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with channels-last strides, also where C = 1 and both orders are the same in memory."""
        if x.size(1) > 1:
            return x.contiguous(memory_format=torch.channels_last)
        return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


class FlattenMaps(nn.Module):
    """Maps `[B, C, H, W]` to vectors `[B, C * H * W]`, channels first, whatever the maps' memory order.

    The gradient comes back in the maps' own memory order; otherwise the layers below would reorder larger maps.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return x.flatten(1)
        vectors: Tensor = _FlattenMaps.apply(x)
        return vectors


class _FlattenMaps(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.flatten(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape, ctx.last = inputs[0].shape, inputs[0].is_contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        order = torch.channels_last if ctx.last else torch.contiguous_format
        return gradient.reshape(ctx.shape).contiguous(memory_format=order)


class GlobalAverage(nn.Module):
    """Mean over the pixels: `[B, C, H, W]` to `[B, C]`; its backward is deterministic on every device.

    The gradient has the maps' memory order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the last two axes."""
        if x.size(1) > 1 and x.is_contiguous(memory_format=torch.channels_last):
            return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)
        return x.mean(dim=(2, 3))


def mlp_layers(in_features: int, hidden: Sequence[int]) -> Layers:
    """Return `fc1, fc1_relu, fc2, fc2_relu, ...`, one pair for each hidden width."""
    layers: Layers = {}
    for index, width in enumerate(hidden, start=1):
        layers[f"fc{index}"] = nn.Linear(in_features, width)
        layers[f"fc{index}_relu"] = nn.ReLU()
        in_features = width
    return layers


def join(parts: Sequence[Tensor], who: nn.Module) -> Tensor:
    """Concatenate the features `[B, D]` of several branches.

    Raises:
        ModelError: the branches have different numbers of rows.
    """
    if any(part.size(0) != parts[0].size(0) for part in parts):
        rows = ", ".join(str(part.size(0)) for part in parts)
        raise ModelError(
            f"{type(who).__name__} joins branches with {rows} rows; give every input the same batch, and where a tap "
            "before the fusion appends rows, repeat the inputs instead"
        )
    return torch.cat(list(parts), dim=1)


def check_input(label: str, x: object, shape: Shape, min_size: int = 1) -> None:
    """Refuse an input that a network can't take, before a layer fails on it.

    Args:
        label: how the message calls the input, e.g. "LeNet5 input".
        x: the input.
        shape: shape of one sample; None where any size will do.
        min_size: smallest size of the axes that are None.

    Raises:
        ModelError: `x` is no floating-point tensor `[B, *shape]`, or an axis of free size is below `min_size`.
    """
    expected = f"[B, {', '.join('any' if size is None else str(size) for size in shape)}]"
    if not isinstance(x, Tensor):
        raise ModelError(
            f"{label}: expected a tensor {expected}, found {type(x).__name__}; check `inputs` of the model"
        )
    sizes = list(zip(shape, x.shape[1:], strict=False))
    if x.ndim != len(shape) + 1 or any(want is not None and want != size for want, size in sizes):
        raise ModelError(
            f"{label}: expected shape {expected}, found {list(x.shape)}; check `inputs` of the model, the shape of "
            "that field in the data and the options of the network"
        )
    if any(want is None and size < min_size for want, size in sizes):
        raise ModelError(f"{label}: expected sizes of at least {min_size}, found shape {list(x.shape)}")
    if not x.is_floating_point():
        raise ModelError(f"{label}: expected floating-point numbers, found {x.dtype}; convert the field to float32")


def check_widths(option: str, widths: Sequence[int], *, allow_empty: bool = False) -> tuple[int, ...]:
    """Return layer widths as a tuple.

    Raises:
        ConfigError: there are none, or one is below 1.
    """
    if (not widths and not allow_empty) or any(width < 1 for width in widths):
        raise ConfigError(f"{option}: expected widths of at least 1, found {list(widths)}")
    return tuple(widths)


def check_dropout(option: str, dropout: float) -> float:
    """Return a dropout probability.

    Raises:
        ConfigError: it is outside [0, 1).
    """
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"{option}: expected a probability from 0 to below 1, found {dropout}")
    return dropout
