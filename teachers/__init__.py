"""Teachers, their masked variants and the pool that runs them."""

from .factorised_mask import FactorisedAttentionMask
from .manifest import check_same, describe_teachers, differences
from .masks import MASKS, FeatureAttentionMask, Mask
from .momentum import MomentumTeacher
from .normalize import Normalisation, TargetNorm
from .pool import Stacking, TeacherPool, Variant
from .teacher import Teacher

__all__ = [
    "MASKS",
    "FactorisedAttentionMask",
    "FeatureAttentionMask",
    "Mask",
    "MomentumTeacher",
    "Normalisation",
    "Stacking",
    "TargetNorm",
    "Teacher",
    "TeacherPool",
    "Variant",
    "check_same",
    "describe_teachers",
    "differences",
]
