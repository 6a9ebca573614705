"""The measures that tables and figures show, by the names that results.json has for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from ..evaluation.embedding_metrics import EmbeddingMetric
from .run import number

#: Shares of right answers, and shares of variance (R2), that come from embeddings; in the order of the tables.
EMBEDDING = get_args(EmbeddingMetric)
#: What models are compared by, unless the config says: the first that is known of the student.
HEADLINES = (
    "miou",
    "accuracy",
    "retrieval_r1",
    "zero_shot_accuracy",
    "linear_probe_accuracy",
    "knn_accuracy",
    "mean_teacher_r2",
)
_LABELS = {
    "miou": "mIoU",
    "weighted_f1": "weighted F1",
    "retrieval_r1": "R@1, both ways",
    "zero_shot_accuracy": "zero-shot accuracy",
    "knn_accuracy": "kNN accuracy",
    "worst_teacher_r2": "R2 of worst teacher",
    "mean_teacher_r2": "R2 of teachers",
    "rank_agreement": "order as the teacher's (tau)",
}


def measure_label(key: str) -> str:
    """Return the name of a measure for people: "image to text R@5"."""
    if key in _LABELS:
        return _LABELS[key]
    return re.sub(r" r(\d+)$", r" R@\1", key.replace("_", " "))


def capital(text: str) -> str:
    """Return a text with a capital; names that have one inside of their first word stay."""
    first = text.split(" ")[0]
    return text[:1].upper() + text[1:] if first.islower() else text


def known_measures(rows: Iterable[Mapping[str, Any]], names: Iterable[str] = EMBEDDING) -> list[str]:
    """Return the measures that some row has a number for."""
    everything = list(rows)
    return [name for name in names if any(number(row.get(name)) == number(row.get(name)) for row in everything)]
