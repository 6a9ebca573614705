"""Small networks for students and teachers of the benchmarks, one family a file. They know nothing of distillation."""

from .adapted_tower import AdaptedTwoTower, ResidualAdapterOptions
from .audio_cnn import AudioCnn
from .av_fusion_cnn import AvFusionCnn
from .base import ENCODERS, NETWORKS, Encoder
from .feature_mlp import MlpI, MlpTb, MlpVb
from .fusenet import FuseNetDepthBranch, FuseNetI, FuseNetRgbBranch
from .fusion import Fusion
from .images import ImageOptions
from .inherit import InheritOptions
from .lenet import LeNet5
from .matcher import Matcher
from .mlp import Mlp, MlpEncoder
from .multi_head import MultiHead, mixed_heads
from .open_clip import OpenClip
from .open_clip_encoder import OpenClipEncoder
from .presets import PRESETS
from .sequence_cnn import (
    AudioBranchNet,
    AudioBranchNetVggs,
    DscnnI,
    DscnnVggsI,
    VisualBranchNet,
    VisualBranchNetVggs,
)
from .small_cnn import CnnEncoder, SmallCnn
from .small_unet import SmallUnet
from .soft_slots import SlotFusion, SoftSlots, slot_weights
from .text_tower import TextOptions, TextTower
from .timm import Timm
from .timm_encoder import TimmEncoder
from .tip_adapter import TipAdapter, TipAdapterOptions, cache_scores
from .token_encoder import Classifier, TokenEncoder
from .transformers import Transformers
from .two_tower import TwoTower
from .vit import VitEncoder
from .zero_shot import ZeroShotOptions

__all__ = [
    "ENCODERS",
    "NETWORKS",
    "PRESETS",
    "AdaptedTwoTower",
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
    "ImageOptions",
    "InheritOptions",
    "LeNet5",
    "Matcher",
    "Mlp",
    "MlpEncoder",
    "MlpI",
    "MlpTb",
    "MlpVb",
    "MultiHead",
    "OpenClip",
    "OpenClipEncoder",
    "ResidualAdapterOptions",
    "SlotFusion",
    "SmallCnn",
    "SmallUnet",
    "SoftSlots",
    "TextOptions",
    "TextTower",
    "Timm",
    "TimmEncoder",
    "TipAdapter",
    "TipAdapterOptions",
    "TokenEncoder",
    "Transformers",
    "TwoTower",
    "VisualBranchNet",
    "VisualBranchNetVggs",
    "VitEncoder",
    "ZeroShotOptions",
    "cache_scores",
    "mixed_heads",
    "slot_weights",
]
