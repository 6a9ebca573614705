"""Large batches in little memory: the models run on a few rows at a time, the losses on all of them.

Shapes: B rows of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from ..model import Batch, Model
from ..signals import PoolSignals, Signals
from ..step import Models
from ..teachers import TeacherPool


def in_chunks(models: Models, rows: int) -> Models:
    """Return the models as a step sees them under gradient caching, with at most `rows` rows in each forward.

    Losses that compare the rows of a batch need all embeddings at once, but not all activations. Gao et al., "Scaling
    Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache, RepL4NLP 2021, arXiv 2101.06983): the
    student gives its embeddings a chunk at a time and forgets the activations; the loss is computed once on all rows;
    in the backward pass each chunk runs again, with the same random numbers, and gets the gradient of its embeddings.
    The gradients are those of the plain step. A step costs one more forward of the student, and memory for the
    activations of one chunk.

    The second forward is that of `torch.utils.checkpoint`, so the loss has one backward pass like any other: automatic
    precision, routers, objectives with parameters of their own and data-parallel wrappers take part as usual, and
    gradients are exchanged once. Taps of the student can be read, but the tapped activations of all rows are kept.
    Frozen teachers run in chunks too; teachers that train run on the whole batch.

    Args:
        models: student, pool and router.
        rows: largest number of rows of one process in a forward.
    """
    return replace(models, student=_ChunkedStudent(models.student, rows), pool=_ChunkedPool(models.pool, rows))


def refuse_batch_norm(student: nn.Module, where: str = "") -> None:
    """Refuse layers whose output for a row depends on the other rows of the forward.

    Args:
        student: the student, in the mode in which it trains.
        where: path of the stage with a dot, for messages.

    Raises:
        ConfigError: batch normalisation in train mode; the message names the layers.
    """
    found = [name for name, part in student.named_modules() if isinstance(part, _BatchNorm) and part.training]
    if found:
        names = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise ConfigError(
            f"{where}micro_batch: the student has batch normalisation in train mode ({names}), whose statistics would "
            "be those of a chunk, and counted twice; use a student with layer or group normalisation, or leave "
            "micro_batch out"
        )


class _Chunked(nn.Module):
    """What a model or pool in chunks has besides its forward: the whole one, whose attributes it shows as its own."""

    def __init__(self, whole: nn.Module, rows: int) -> None:
        nn.Module.__init__(self)
        self.whole, self.rows = whole, rows

    def __getattr__(self, name: str) -> Any:
        """Return what this module has, or the whole one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("whole"), name)


class _ChunkedStudent(_Chunked, Model):
    """A model that runs a few rows at a time and recomputes its activations for the backward pass."""

    whole: Model

    def forward(self, batch: Batch, taps: Sequence[str] | None = None) -> Signals:
        """Return the signals of all rows."""
        parts = [self._run(_part(batch, start, stop), taps) for start, stop in _ranges(batch, self.rows)]
        return parts[0] if len(parts) == 1 else Signals.cat(parts)

    def _run(self, batch: Batch, taps: Sequence[str] | None) -> Signals:
        learns = torch.is_grad_enabled()
        said = checkpoint(self.whole, batch, taps, use_reentrant=False) if learns else self.whole(batch, taps)
        assert isinstance(said, Signals)
        return said


class _ChunkedPool(_Chunked, TeacherPool):
    """A pool whose frozen teachers run a few rows at a time."""

    whole: TeacherPool

    def forward(
        self,
        batch: Batch,
        variants: Sequence[str] | None = None,
        rows: Mapping[str, Tensor] | None = None,
        features: bool = False,
    ) -> PoolSignals:
        """Return what the pool gives for all rows."""
        whole, names = self.whole, list(self.whole.experts if variants is None else variants)
        if not names or not whole.frozen(names):
            said = whole(batch, variants, rows, features)
            assert isinstance(said, PoolSignals)
            return said
        parts: list[PoolSignals] = []
        places: dict[str, list[Tensor]] = {name: [] for name in names}
        for start, stop in _ranges(batch, self.rows):
            mine = None
            if rows is not None:
                inside = {name: ((rows[name] >= start) & (rows[name] < stop)).nonzero()[:, 0] for name in names}
                mine = {name: rows[name][inside[name]] - start for name in names}
                for name in names:
                    places[name].append(inside[name])
            parts.append(whole(_part(batch, start, stop), names, mine, features))
        known = [name for name in names if any(name in part for part in parts)]
        return PoolSignals({name: _joined(parts, name, places[name]) for name in known})


def _joined(parts: Sequence[PoolSignals], name: str, places: Sequence[Tensor]) -> Signals:
    """Join the chunks of a teacher, in the order in which its rows were asked for."""
    signals = Signals.cat([part[name] for part in parts if name in part])
    return signals.select(torch.cat(list(places)).argsort()) if places else signals


def _ranges(batch: Batch, rows: int) -> Iterator[tuple[int, int]]:
    """Yield the limits of the chunks; one empty chunk for a batch without rows."""
    size = len(batch["id"])
    for start in range(0, max(size, 1), rows):
        yield start, min(start + rows, size)


def _part(batch: Batch, start: int, stop: int) -> dict[str, Any]:
    """Return some rows of a batch: of its tensors and lists; everything else is for all rows."""
    rows = len(batch["id"])
    return {key: value[start:stop] if _by_row(value) and len(value) == rows else value for key, value in batch.items()}


def _by_row(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)
