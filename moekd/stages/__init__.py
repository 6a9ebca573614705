"""Stages of a recipe: the common training stage, and the place of other kinds."""

from .base import STAGES, Monitor, Stage, StageSettings
from .bilevel import BilevelStage
from .class_vectors import ClassVectorStage
from .context import RunData, StageContext
from .fit_head_mix import FitHeadMixStage, fit_head_mix
from .tip_adapter import TipAdapterStage, fit_tip_adapter
from .train import TrainStage
from .training_step import TrainingStep, WeightedObjective

__all__ = [
    "STAGES",
    "BilevelStage",
    "ClassVectorStage",
    "FitHeadMixStage",
    "Monitor",
    "RunData",
    "Stage",
    "StageContext",
    "StageSettings",
    "TipAdapterStage",
    "TrainStage",
    "TrainingStep",
    "WeightedObjective",
    "fit_head_mix",
    "fit_tip_adapter",
]
