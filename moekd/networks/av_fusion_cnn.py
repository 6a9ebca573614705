"""Intermediate fusion of an image and a spectrogram: CNN-I of the CMKD benchmark (arXiv 2507.07015)."""

from __future__ import annotations

from torch import Tensor, nn

from ..registry import Injected
from .audio_cnn import SPECTROGRAM_SHAPE, conv_relu_layers
from .base import NETWORKS
from .layers import Chain, GlobalAverage, join
from .lenet import IMAGE_SHAPE, lenet_layers


@NETWORKS.register("av_fusion_cnn")
class AvFusionCnn(nn.Module):
    """Audio-visual network of AV-MNIST, 1,809,752 parameters with ten classes.

    The classifier is affine: there is no activation between the two branches' features, `fc1` and `fc2`. As in the
    released code, the last map of the audio branch (7x7) is averaged without another max pooling.

    Shape:
        inputs image `[B, 1, 28, 28]` and audio `[B, 1, 112, 112]`; taps concat_identity `[B, 596]` (84 of the image,
        then 512 of the audio), fc1 `[B, 298]`, fc2 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__()
        audio_layers = conv_relu_layers((32, 64, 128, 256, 512), pooled=4) | {"avg_pool": GlobalAverage()}
        self.AudioNet = Chain(audio_layers, SPECTROGRAM_SHAPE, label="AvFusionCnn audio")
        self.ImageNet = Chain(lenet_layers(), IMAGE_SHAPE, label="AvFusionCnn image")
        self.concat_identity = nn.Identity()
        self.fc1 = nn.Linear(84 + 512, 298)
        self.fc2 = nn.Linear(298, num_classes)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """Return logits `[B, C]`."""
        features = self.concat_identity(join([self.ImageNet(image), self.AudioNet(audio)], self))
        return self.fc2(self.fc1(features))
