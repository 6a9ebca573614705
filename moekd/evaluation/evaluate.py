"""Measure one model on one split.

Shapes: B batch, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..allocator import sparing
from ..errors import DataError
from ..model import Batch
from ..signals import Signals
from .calibration import CalibrationError
from .confusion import ConfusionMatrix
from .embedded import Collector
from .sums import reduce_over_ranks, sum_dtype

Classes = Sequence[int] | NDArray[np.int64]
#: Logit of a class that is no candidate: no probability in any softmax, and finite.
RULED_OUT = -1e4


def evaluate_model(
    forward: Callable[[Batch], Tensor],
    loader: Iterable[Batch],
    num_classes: int,
    device: torch.device | str,
    ignore_index: int | None = None,
    *,
    parity: bool = False,
) -> dict[str, Any]:
    """Return the metrics of `ConfusionMatrix.compute`, the mean cross-entropy and the calibration error.

    All sums stay on the device and are read once at the end. In a distributed run each process passes its own share
    of the data and gets the metrics of the whole; every process has to call this.

    Args:
        forward: maps a batch (already on `device`) to logits `[B, C]` or `[B, C, H, W]`. It has to be in eval mode.
        loader: batches with "label" `[B]` or `[B, H, W]`.
        num_classes: C.
        device: where batches are moved.
        ignore_index: label that does not count.
        parity: the published treatment of samples predicted as void, see `ConfusionMatrix`.

    Returns:
        Metrics with `loss` (nats, mean over counted samples, float64) and `calibration_error` (15 bins) added;
        `miou` only for dense labels.

    Raises:
        DataError: no data, a batch without labels, or labels outside of the classes.
        NonFiniteError: the model gave NaN.
    """
    device = torch.device(device)
    metrics = ClassificationMetrics(num_classes, device, ignore_index, parity=parity)
    with torch.inference_mode():
        for batch in sparing(loader):
            if "label" not in batch:
                raise DataError(f"can't evaluate without the field 'label'; fields: {', '.join(batch)}")
            moved = to_device(batch, device)
            metrics.update(forward(moved), moved["label"])
        return metrics.compute()


def evaluate_signals(
    forward: Callable[[Batch], Signals],
    loader: Iterable[Batch],
    num_classes: int,
    device: torch.device | str,
    collector: Collector,
    ignore_index: int | None = None,
    candidates: Classes | None = None,
) -> dict[str, Any]:
    """Return what `evaluate_model` does, and let `collector` keep the embeddings, in one pass over the data.

    Where the split drops void (`Split.drops_void`), pixels that are predicted as void do not count.

    A model without logits, and data without labels, give no metrics: the result is empty.

    Args:
        forward: maps a batch (already on `device`) to signals; it has to be in eval mode.
        loader: batches.
        num_classes: C.
        device: where batches are moved.
        collector: gathers what the model says.
        ignore_index: label that does not count.
        candidates: the only classes in question; None: all.
    """
    device, metrics = torch.device(device), None
    parity = bool(getattr(getattr(loader, "dataset", None), "drops_void", False))
    with torch.inference_mode():
        for batch in sparing(loader):
            moved = to_device(batch, device)
            signals = forward(moved)
            if candidates is not None and signals.logits is not None:
                signals = replace(signals, logits=among(signals.logits, candidates))
            if signals.logits is not None and moved.get("label") is not None:
                metrics = metrics or ClassificationMetrics(num_classes, device, ignore_index, parity=parity)
                metrics.update(signals.logits, moved["label"])
            collector.add(moved, signals)
        return {} if metrics is None else metrics.compute()


class ClassificationMetrics:
    """Sums of the classification metrics, on the device; see `evaluate_model`."""

    def __init__(
        self, num_classes: int, device: torch.device, ignore_index: int | None = None, *, parity: bool = False
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.confusion = ConfusionMatrix(num_classes, ignore_index, parity=parity, device=device)
        self.calibration = CalibrationError(device=device)
        self.loss = torch.zeros(3, dtype=sum_dtype(device), device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits `[B, C, ...]` with labels `[B, ...]`."""
        labels = labels.long()
        self.confusion.update(logits, labels)
        counted = (labels >= 0) & (labels < self.num_classes)
        if self.ignore_index is not None:
            counted &= labels != self.ignore_index
        self.calibration.update(logits, labels, counted)
        self.loss += _loss_count_dense(logits, labels, counted, self.loss.dtype)

    def compute(self) -> dict[str, Any]:
        """Add up over all processes and return the metrics; every process has to call this."""
        reduce_over_ranks([self.loss])
        metrics = self.confusion.reduce().compute()
        total, count, dense = self.loss.tolist()
        if not dense:
            del metrics["miou"]
        return {**metrics, "loss": total / count, "calibration_error": self.calibration.reduce().compute()}


def among(logits: Tensor, candidates: Classes) -> Tensor:
    """Return logits `[B, C, ...]` in which only some classes have a probability."""
    out = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    out[torch.as_tensor(np.asarray(candidates), device=logits.device)] = False
    return logits.masked_fill(out.view(-1, *[1] * (logits.dim() - 2)), RULED_OUT)


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch; other values stay as they are."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


def _loss_count_dense(logits: Tensor, labels: Tensor, counted: Tensor, dtype: torch.dtype) -> Tensor:
    losses = F.cross_entropy(logits.float(), torch.where(counted, labels, 0), reduction="none").to(dtype)
    dense = torch.full((), labels.ndim > 1, dtype=dtype, device=labels.device)
    return torch.stack([torch.where(counted, losses, 0.0).sum(), counted.sum().to(dtype), dense])
