"""Metrics, calibration, routing diagnostics and statistics over seeds."""

from __future__ import annotations

from .calibration import CalibrationError
from .confusion import ConfusionMatrix
from .evaluate import evaluate_model, to_device
from .routing import RoutingStatistics
from .statistics import Interval, Paired, holm, mean_interval, paired_difference
from .sums import reduce_over_ranks

__all__ = [
    "CalibrationError",
    "ConfusionMatrix",
    "Interval",
    "Paired",
    "RoutingStatistics",
    "evaluate_model",
    "holm",
    "mean_interval",
    "paired_difference",
    "reduce_over_ranks",
    "to_device",
]
