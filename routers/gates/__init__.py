"""Gates: what scores the teachers for an instance."""

from .agreement import AgreementGate
from .base import GATES, Gate
from .class_oracle import ClassOracleGate
from .cosine import CosineGate, PrototypeGate
from .entropy import EntropyGate, entropy_weights
from .fixed import UniformGate
from .fusion_ratio import FusionRatioGate
from .gradient_qp import GradientQPGate, gradient_weights
from .groups import ModalityGate, TaskGate
from .instance import DenseInstanceGate, InstanceGate
from .label_confidence import LabelConfidenceGate, label_confidence
from .label_group import LabelGroupGate
from .linear import LinearGate, MLPGate
from .mismatch import MismatchGate
from .oracle import OracleGate
from .policy import PolicyGate
from .sample_reweight import SampleReweightGate
from .static import StaticGate

__all__ = [
    "GATES",
    "AgreementGate",
    "ClassOracleGate",
    "CosineGate",
    "DenseInstanceGate",
    "EntropyGate",
    "FusionRatioGate",
    "Gate",
    "GradientQPGate",
    "InstanceGate",
    "LabelConfidenceGate",
    "LabelGroupGate",
    "LinearGate",
    "MLPGate",
    "MismatchGate",
    "ModalityGate",
    "OracleGate",
    "PolicyGate",
    "PrototypeGate",
    "SampleReweightGate",
    "StaticGate",
    "TaskGate",
    "UniformGate",
    "entropy_weights",
    "gradient_weights",
    "label_confidence",
]
