"""Compact convolutional networks for small machines: images, spectrograms, any one map."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Literal

from torch import nn

from ..registry import Injected
from .base import ENCODERS, NETWORKS, Encoder
from .layers import Chain, ChannelsLast, GlobalAverage, Layers, check_dropout, check_widths, mlp_layers

Norm = Literal["batch", "group", "none"]


def conv_layers(channels: Sequence[int], in_channels: int, downsample: int, norm: Norm) -> Layers:
    """Return blocks of 3x3 convolution, normalisation, max pooling and ReLU, then the mean over the pixels.

    Pooling before ReLU gives the same values as the usual order for a quarter of the work. Names: `downsample` (an
    average pooling, where it is above 1), `channels_last`, `conv1, norm1, pool1, relu1`, ..., `pool`.
    """
    check_widths("in_channels", [in_channels])
    check_widths("downsample", [downsample])
    layers: Layers = {"downsample": nn.AvgPool2d(downsample)} if downsample > 1 else {}
    layers["channels_last"] = ChannelsLast()
    for index, width in enumerate(check_widths("channels", channels), start=1):
        layers[f"conv{index}"] = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=norm == "none")
        if norm == "batch":
            layers[f"norm{index}"] = nn.BatchNorm2d(width)
        elif norm == "group":
            layers[f"norm{index}"] = nn.GroupNorm(gcd(8, width), width)
        layers[f"pool{index}"] = nn.MaxPool2d(2)
        layers[f"relu{index}"] = nn.ReLU()
        in_channels = width
    return layers | {"pool": GlobalAverage()}


def _smallest(channels: Sequence[int], downsample: int) -> int:
    """Return the smallest height or width that leaves one pixel before the last mean."""
    return downsample * 2 ** len(channels)


@ENCODERS.register("cnn_encoder")
class CnnEncoder(Chain, Encoder):
    """The convolutional part of `small_cnn`: a map to a vector of `channels[-1]` features.

    Args:
        channels: output channels of the blocks; each block halves height and width.
        in_channels: channels of the input.
        downsample: average the input over squares of this size first.
        norm: normalisation behind each convolution: `batch`, `group` (up to 8 groups) or `none`.

    Shape:
        input `[B, in_channels, H, W]`, output `[B, channels[-1]]`; taps conv1, ..., pool.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
        downsample: int = 1,
        norm: Norm = "batch",
    ) -> None:
        layers = conv_layers(channels, in_channels, downsample, norm)
        shape = (in_channels, None, None)
        super().__init__(layers, shape, min_size=_smallest(channels, downsample))
        self.out_features = channels[-1]


@NETWORKS.register("small_cnn")
class SmallCnn(Chain):
    """A small classifier of images or spectrograms; batch and input size are free.

    Args:
        num_classes: number of classes.
        channels: output channels of the blocks; each block halves height and width.
        in_channels: channels of the input: 3 for colour images, 1 for spectrograms.
        hidden: width of `fc1`; null for a linear classifier, which is then called `fc1` itself.
        downsample: average the input over squares of this size first, e.g. 2 for 112x112 spectrograms.
        norm: normalisation behind each convolution: `batch`, `group` (up to 8 groups) or `none`.
        dropout: probability before the last layer.

    Shape:
        input `[B, in_channels, H, W]`; taps conv1 `[B, channels[0], H, W]`, ..., pool `[B, channels[-1]]`,
        fc1 `[B, hidden]`, fc2 `[B, C]`.
    """

    def __init__(
        self,
        num_classes: Injected[int],
        channels: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
        hidden: int | None = 64,
        downsample: int = 1,
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        layers = conv_layers(channels, in_channels, downsample, norm)
        widths = check_widths("hidden", [] if hidden is None else [hidden], allow_empty=True)
        layers |= mlp_layers(channels[-1], widths)
        layers["dropout"] = nn.Dropout(check_dropout("dropout", dropout))
        layers[f"fc{len(widths) + 1}"] = nn.Linear([channels[-1], *widths][-1], num_classes)
        shape = (in_channels, None, None)
        super().__init__(layers, shape, min_size=_smallest(channels, downsample))
