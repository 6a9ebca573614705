"""Metrics, calibration, retrieval, zero-shot classification, probes, routing diagnostics and statistics over seeds."""

from __future__ import annotations

from .calibration import CalibrationError
from .confusion import ConfusionMatrix
from .evaluate import evaluate_model, to_device
from .probe import LinearProbe, accuracy, knn_votes, linear_probe
from .retrieval import retrieval
from .routing import RoutingStatistics
from .statistics import Interval, Paired, holm, mean_interval, paired_difference
from .sums import reduce_over_ranks
from .zero_shot import TEMPLATES, class_vectors, prompts, zero_shot_logits

__all__ = [
    "TEMPLATES",
    "CalibrationError",
    "ConfusionMatrix",
    "Interval",
    "LinearProbe",
    "Paired",
    "RoutingStatistics",
    "accuracy",
    "class_vectors",
    "evaluate_model",
    "holm",
    "knn_votes",
    "linear_probe",
    "mean_interval",
    "paired_difference",
    "prompts",
    "reduce_over_ranks",
    "retrieval",
    "to_device",
    "zero_shot_logits",
]
