"""Metrics, calibration, retrieval, zero-shot classification, probes, routing diagnostics and statistics over seeds."""

from __future__ import annotations

from .calibration import CalibrationError
from .confusion import ConfusionMatrix
from .embedded import Collector, Embedded
from .embedding_metrics import HEADLINES, EmbeddingSettings
from .evaluate import evaluate_model, evaluate_signals, to_device
from .linear_map import linear_map_r2
from .probe import LinearProbe, accuracy, knn_votes, linear_probe
from .retrieval import retrieval
from .routing import RoutingStatistics
from .settings import embedding_settings
from .statistics import Interval, Paired, holm, mean_interval, paired_difference
from .student_metrics import model_metrics
from .sums import reduce_over_ranks
from .zero_shot import TEMPLATES, class_vectors, prompts, zero_shot_logits

__all__ = [
    "HEADLINES",
    "TEMPLATES",
    "CalibrationError",
    "Collector",
    "ConfusionMatrix",
    "Embedded",
    "EmbeddingSettings",
    "Interval",
    "LinearProbe",
    "Paired",
    "RoutingStatistics",
    "accuracy",
    "class_vectors",
    "embedding_settings",
    "evaluate_model",
    "evaluate_signals",
    "holm",
    "knn_votes",
    "linear_map_r2",
    "linear_probe",
    "mean_interval",
    "model_metrics",
    "paired_difference",
    "prompts",
    "reduce_over_ranks",
    "retrieval",
    "to_device",
    "zero_shot_logits",
]
