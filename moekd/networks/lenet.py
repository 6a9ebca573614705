"""LeNet-5 for 28x28 images (LeCun et al., Gradient-based learning applied to document recognition, 1998).

The variant of the CMKD benchmark (arXiv 2507.07015): ReLU, average pooling, third convolution down to one pixel.
"""

from __future__ import annotations

from torch import nn

from ..registry import Injected
from .base import NETWORKS
from .layers import Chain, Layers

IMAGE_SHAPE = (1, 28, 28)


def lenet_layers() -> Layers:
    """Return the layers up to the 84 features behind `fc1`: `[B, 1, 28, 28]` to `[B, 84]`, 60,856 parameters."""
    return {
        "conv1": nn.Conv2d(1, 6, kernel_size=5, padding=2),
        "relu1": nn.ReLU(),
        "pool1": nn.AvgPool2d(2),
        "conv2": nn.Conv2d(6, 16, kernel_size=5),
        "relu2": nn.ReLU(),
        "pool2": nn.AvgPool2d(2),
        "conv3": nn.Conv2d(16, 120, kernel_size=5),
        "relu3": nn.ReLU(),
        "flatten_identity": nn.Flatten(),
        "fc1": nn.Linear(120, 84),
        "fc1_relu": nn.ReLU(),
    }


@NETWORKS.register("lenet5")
class LeNet5(Chain):
    """Image network of AV-MNIST, 61,706 parameters with ten classes.

    Shape:
        input `[B, 1, 28, 28]`; taps conv3 `[B, 120, 1, 1]`, flatten_identity `[B, 120]`, fc1 `[B, 84]`, fc2 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__(lenet_layers() | {"fc2": nn.Linear(84, num_classes)}, IMAGE_SHAPE)
