"""Convolutional networks for 112x112 spectrograms, from the CMKD benchmark (arXiv 2507.07015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..registry import Injected
from .base import NETWORKS
from .layers import Chain, ChannelsLast, FlattenMaps, Layers

SPECTROGRAM_SHAPE = (1, 112, 112)


def conv_relu_layers(channels: Sequence[int], pooled: int) -> Layers:
    """Return 3x3 convolutions of one-channel maps with ReLU; the first `pooled` are also halved by max pooling.

    Pooling comes before ReLU: the same values and gradients for a quarter of the work. Names: `channels_last`,
    `conv1, pool1, relu1`, ..., `conv<n>, relu<n>`.
    """
    layers: Layers = {"channels_last": ChannelsLast()}
    before = 1
    for index, width in enumerate(channels, start=1):
        layers[f"conv{index}"] = nn.Conv2d(before, width, kernel_size=3, padding=1)
        if index <= pooled:
            layers[f"pool{index}"] = nn.MaxPool2d(2)
        layers[f"relu{index}"] = nn.ReLU()
        before = width
    return layers


@NETWORKS.register("audio_cnn")
class AudioCnn(Chain):
    """Audio network of AV-MNIST (ThreeLayerCNN-A), 343,562 parameters with ten classes.

    Shape:
        input `[B, 1, 112, 112]`; taps conv2 `[B, 64, 56, 56]`, conv3 `[B, 128, 28, 28]`,
        conv3_maxpool `[B, 128, 14, 14]` (behind its ReLU), conv3_maxpool_flatten `[B, 25088]`, fc1 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        layers = conv_relu_layers((32, 64, 128), pooled=3)
        layers["conv3_maxpool"] = layers.pop("relu3")
        layers |= {
            "conv3_maxpool_flatten": FlattenMaps(),
            "fc1": nn.Linear(128 * 14 * 14, num_classes),
        }
        super().__init__(layers, SPECTROGRAM_SHAPE)
