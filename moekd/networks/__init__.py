"""Small networks for students and teachers of the benchmarks, one family a file. They know nothing of distillation."""

from .audio_cnn import AudioCnn
from .av_fusion_cnn import AvFusionCnn
from .base import ENCODERS, NETWORKS, Encoder
from .feature_mlp import MlpI, MlpTb, MlpVb
from .fusenet import FuseNetDepthBranch, FuseNetI, FuseNetRgbBranch
from .fusion import Fusion
from .lenet import LeNet5
from .mlp import Mlp, MlpEncoder
from .sequence_cnn import (
    AudioBranchNet,
    AudioBranchNetVggs,
    DscnnI,
    DscnnVggsI,
    VisualBranchNet,
    VisualBranchNetVggs,
)
from .small_cnn import CnnEncoder, SmallCnn
from .soft_slots import SlotFusion, SoftSlots, slot_weights
from .token_encoder import Classifier, TokenEncoder

__all__ = [
    "ENCODERS",
    "NETWORKS",
    "AudioBranchNet",
    "AudioBranchNetVggs",
    "AudioCnn",
    "AvFusionCnn",
    "Classifier",
    "CnnEncoder",
    "DscnnI",
    "DscnnVggsI",
    "Encoder",
    "FuseNetDepthBranch",
    "FuseNetI",
    "FuseNetRgbBranch",
    "Fusion",
    "LeNet5",
    "Mlp",
    "MlpEncoder",
    "MlpI",
    "MlpTb",
    "MlpVb",
    "SlotFusion",
    "SmallCnn",
    "SoftSlots",
    "TokenEncoder",
    "VisualBranchNet",
    "VisualBranchNetVggs",
    "slot_weights",
]
