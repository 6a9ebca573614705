"""Perceptrons on ready-made features: CrisisMMD-V2 in the CMKD benchmark (arXiv 2507.07015).

The image is a 2048-vector of ResNet-50, the text a 768-vector of BERTweet. Parameter names are those of the released
code, so its checkpoints load.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..registry import Injected
from .base import NETWORKS
from .layers import Chain, join, mlp_layers

IMAGE_FEATURES, TEXT_FEATURES = 2048, 768
HIDDEN = (1024, 512)


@NETWORKS.register("mlp_vb")
class MlpVb(Chain):
    """Image network of CrisisMMD, 2,627,080 parameters with eight classes.

    Shape:
        input `[B, 2048]`; taps fc1 `[B, 1024]`, fc2 `[B, 512]`, fc3 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__(mlp_layers(IMAGE_FEATURES, HIDDEN) | {"fc3": nn.Linear(512, num_classes)}, (IMAGE_FEATURES,))


@NETWORKS.register("mlp_tb")
class MlpTb(Chain):
    """Text network of CrisisMMD, 1,316,360 parameters with eight classes.

    Shape:
        input `[B, 768]`; taps fc1 `[B, 1024]`, fc2 `[B, 512]`, fc3 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__(mlp_layers(TEXT_FEATURES, HIDDEN) | {"fc3": nn.Linear(512, num_classes)}, (TEXT_FEATURES,))


@NETWORKS.register("mlp_i")
class MlpI(nn.Module):
    """Image-text network of CrisisMMD (MLP-I), 4,593,416 parameters with eight classes.

    Shape:
        inputs image `[B, 2048]` and text `[B, 768]`; taps concat_identity `[B, 1024]`, fc1 `[B, 512]`,
        fc2 `[B, 256]`, fc3 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__()
        self.VisualNet = Chain(mlp_layers(IMAGE_FEATURES, HIDDEN), (IMAGE_FEATURES,), label="MlpI image")
        self.TextualNet = Chain(mlp_layers(TEXT_FEATURES, HIDDEN), (TEXT_FEATURES,), label="MlpI text")
        self.concat_identity = nn.Identity()
        self.fc1, self.fc1_relu = nn.Linear(1024, 512), nn.ReLU()
        self.fc2, self.fc2_relu = nn.Linear(512, 256), nn.ReLU()
        self.fc3 = nn.Linear(256, num_classes)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Return logits `[B, C]`."""
        x = self.concat_identity(join([self.VisualNet(image), self.TextualNet(text)], self))
        return self.fc3(self.fc2_relu(self.fc2(self.fc1_relu(self.fc1(x)))))
