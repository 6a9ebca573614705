"""The metrics of one model in one pass, as validation and `monitor` know them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..model import Batch, Model
from .embedded import Collector
from .embedding_metrics import (
    EmbeddingSettings,
    flatten_metrics,
    measure_retrieval,
    measure_zero_shot,
    text_class_vectors,
)
from .evaluate import Classes, evaluate_signals
from .rank_agreement import JudgingTeacher, measure_rank_agreement


def model_metrics(
    model: Model,
    loader: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    settings: EmbeddingSettings | None = None,
    ignore_index: int | None = None,
    keep: Iterable[int] | None = None,
    candidates: Classes | None = None,
    judges: Mapping[str, JudgingTeacher] | None = None,
) -> dict[str, Any]:
    """Return the metrics of a model in eval mode; every process has to call this.

    Those of `evaluate_model` where it gives logits; of its embeddings, retrieval and zero-shot accuracy, by the names
    of `flatten_metrics`. Nothing is fitted.

    Args:
        model: the model.
        loader: this process's batches.
        num_classes: C.
        device: where the model is.
        settings: what is measured on embeddings; None: nothing.
        ignore_index: label that does not count.
        keep: ids of the rows whose embeddings count; None: all.
        candidates: the only classes in question; None: all.
        judges: teachers with whose order of hard negatives the model's is compared; None: it is not.

    Raises:
        NonFiniteError: embeddings or logits that are not finite.
    """
    off = settings is None or not (settings.retrieval or settings.templates)
    same = settings.same if settings is not None else None
    fields = settings.fields if settings is not None else None
    collector = Collector(model.inputs, fields, same, [] if off else keep)
    metrics = evaluate_signals(
        lambda batch: model(batch, ()), loader, num_classes, device, collector, ignore_index, candidates
    )
    if off or settings is None or not collector.has_embeddings:
        return metrics
    embedded = collector.result(device)
    embedded.check_finite("the model")
    found: dict[str, Any] = {}
    if settings.retrieval:
        found["retrieval"] = measure_retrieval(embedded, device)
    if judges and settings.rank_agreement is not None:
        k = settings.rank_agreement
        taus = {n: measure_rank_agreement(embedded, t.embedded, k, device, t.scorer) for n, t in judges.items()}
        found["rank_agreement"] = {name: values for name, values in taus.items() if values}
    vectors = text_class_vectors(model.network, settings)
    if vectors is not None:
        found["zero_shot"] = measure_zero_shot(embedded, vectors, candidates)
    return metrics | flatten_metrics(found)
