"""Networks for sound sequences and video: RAVDESS and VGGSound-50k in the CMKD benchmark (arXiv 2507.07015).

A branch is three blocks of convolution, batch normalisation, ReLU and max pooling, flattened; all networks share the
head fc1 (320), fc2 (160), fc3 (classes). Parameter names are those of the released code, so its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..registry import Injected
from .base import NETWORKS
from .layers import Chain, Layers, join, mlp_layers


def ravdess_audio(label: str) -> Chain:
    """Return the branch for MFCC sequences: `[B, 15, 156]` to `[B, 1280]`."""
    return Chain(_branch(nn.Conv1d, (15, 32, 128, 256), (3, 3, 3)), (15, 156), label=label)


def ravdess_visual(label: str) -> Chain:
    """Return the branch for 15 video frames: `[B, 3, 15, 224, 224]` to `[B, 18816]`."""
    return Chain(_branch(nn.Conv3d, (3, 6, 12, 24), (2, 2, 2)), (3, 15, 224, 224), label=label)


def vggsound_audio(label: str) -> Chain:
    """Return the branch for audio features of ten seconds: `[B, 10, 128]` to `[B, 256]`."""
    return Chain(_branch(nn.Conv1d, (10, 16, 32, 64), (3, 3, 3)), (10, 128), label=label)


def vggsound_visual(label: str) -> Chain:
    """Return the branch for visual feature maps of ten seconds: `[B, 512, 10, 7, 7]` to `[B, 128]`."""
    return Chain(_branch(nn.Conv3d, (512, 256, 128, 64), (2, 2, 1)), (512, 10, 7, 7), label=label)


def head_layers(in_features: int, num_classes: int) -> Layers:
    """Return fc1 (320), fc2 (160) and fc3 (classes), with ReLU between them."""
    return mlp_layers(in_features, (320, 160)) | {"fc3": nn.Linear(160, num_classes)}


def _branch(conv: type[nn.Conv1d] | type[nn.Conv3d], channels: Sequence[int], pools: Sequence[int]) -> Layers:
    """Return conv, bn, relu and max pooling (where its size is above 1) for each block, then flatten."""
    one_d = conv is nn.Conv1d
    layers: Layers = {}
    for index, pool in enumerate(pools, start=1):
        layers[f"conv{index}"] = conv(channels[index - 1], channels[index], kernel_size=3, padding=1)
        layers[f"bn{index}"] = (nn.BatchNorm1d if one_d else nn.BatchNorm3d)(channels[index])
        layers[f"relu{index}"] = nn.ReLU()
        if pool > 1:
            layers[f"pool{index}"] = (nn.MaxPool1d if one_d else nn.MaxPool3d)(pool)
    return layers | {"flatten": nn.Flatten()}


class DualStream(nn.Module):
    """Both branches, joined before the head: audio features first, then visual ones.

    Args:
        audio: audio branch.
        visual: visual branch.
        in_features: width of the joined features.
        num_classes: width of the logits.
    """

    def __init__(self, audio: Chain, visual: Chain, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.audio_branch, self.visual_branch = audio, visual
        self.concat_identity = nn.Identity()
        self.fc1, self.fc1_relu = nn.Linear(in_features, 320), nn.ReLU()
        self.fc2, self.fc2_relu = nn.Linear(320, 160), nn.ReLU()
        self.fc3 = nn.Linear(160, num_classes)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Return logits `[B, C]`; the visual input comes first."""
        visual_BD, audio_BD = self.visual_branch(visual), self.audio_branch(audio)
        x = self.concat_identity(join([audio_BD, visual_BD], self))
        return self.fc3(self.fc2_relu(self.fc2(self.fc1_relu(self.fc1(x)))))


@NETWORKS.register("audio_branch_net")
class AudioBranchNet(Chain):
    """Audio network of RAVDESS, 575,848 parameters with eight classes.

    Shape:
        input `[B, 15, 156]` (MFCC as channels, time last); taps audio_branch `[B, 1280]`, fc1 `[B, 320]`,
        fc2 `[B, 160]`, fc3 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        branch = ravdess_audio("AudioBranchNet input")
        super().__init__({"audio_branch": branch} | head_layers(1280, num_classes), branch.input_shape)


@NETWORKS.register("visual_branch_net")
class VisualBranchNet(Chain):
    """Video network of RAVDESS, 6,084,420 parameters with eight classes.

    Shape:
        input `[B, 3, 15, 224, 224]` (channels, frames, height, width); taps visual_branch `[B, 18816]`,
        fc1 `[B, 320]`, fc2 `[B, 160]`, fc3 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        branch = ravdess_visual("VisualBranchNet input")
        super().__init__({"visual_branch": branch} | head_layers(18816, num_classes), branch.input_shape)


@NETWORKS.register("dscnn_i")
class DscnnI(DualStream):
    """Audio-visual network of RAVDESS (DSCNN-I), 6,607,300 parameters with eight classes.

    Shape:
        inputs video `[B, 3, 15, 224, 224]` and MFCC `[B, 15, 156]`; taps concat_identity `[B, 20096]`,
        fc1 `[B, 320]`, fc2 `[B, 160]`, fc3 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__(ravdess_audio("DscnnI audio"), ravdess_visual("DscnnI video"), 1280 + 18816, num_classes)


@NETWORKS.register("audio_branch_net_vggs")
class AudioBranchNetVggs(Chain):
    """Audio network of VGGSound-50k, 164,797 parameters with 141 classes.

    Shape:
        input `[B, 10, 128]` (seconds as channels); taps audio_branch `[B, 256]`, fc1 `[B, 320]`, fc2 `[B, 160]`,
        fc3 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        branch = vggsound_audio("AudioBranchNetVggs input")
        super().__init__({"audio_branch": branch} | head_layers(256, num_classes), branch.input_shape)


@NETWORKS.register("visual_branch_net_vggs")
class VisualBranchNetVggs(Chain):
    """Visual network of VGGSound-50k, 4,761,549 parameters with 141 classes.

    Shape:
        input `[B, 512, 10, 7, 7]` (channels, seconds, height, width); taps visual_branch `[B, 128]`,
        fc1 `[B, 320]`, fc2 `[B, 160]`, fc3 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        branch = vggsound_visual("VisualBranchNetVggs input")
        super().__init__({"visual_branch": branch} | head_layers(128, num_classes), branch.input_shape)


@NETWORKS.register("dscnn_vggs_i")
class DscnnVggsI(DualStream):
    """Audio-visual network of VGGSound-50k (DSCNN-VGGS-I), 4,851,965 parameters with 141 classes.

    Shape:
        inputs visual `[B, 512, 10, 7, 7]` and audio `[B, 10, 128]`; taps concat_identity `[B, 384]`,
        fc1 `[B, 320]`, fc2 `[B, 160]`, fc3 `[B, C]`.
    """

    def __init__(self, num_classes: Injected[int]) -> None:
        audio, visual = vggsound_audio("DscnnVggsI audio"), vggsound_visual("DscnnVggsI visual")
        super().__init__(audio, visual, 256 + 128, num_classes)
