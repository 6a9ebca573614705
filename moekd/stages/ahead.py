"""What the teachers say about the next batch, computed while the student trains on this one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..evaluation.evaluate import to_device
from ..model import Batch
from ..signals import PoolSignals
from ..teachers import TeacherPool
from ..transforms import Transform
from .base import StageSettings
from .context import StageContext
from .teacher_plan import TeacherPlan

logger = logging.getLogger(__name__)


class Stream:
    """Does the work at once, as a device without streams does."""

    def start(self, work: Callable[[], PoolSignals], batch: Batch) -> PoolSignals:
        """Begin to work on a batch that is on the device."""
        return work()

    def wait(self, signals: PoolSignals) -> None:
        """Let what follows on the device use the signals."""


class CudaStream(Stream):
    """Works on a CUDA stream of its own, beside the stream on which the student trains. Not yet run on a GPU.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream, self.done = torch.cuda.Stream(device), torch.cuda.Event()

    def start(self, work: Callable[[], PoolSignals], batch: Batch) -> PoolSignals:
        """Begin to work when the batch is there; the host goes on at once."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(self.stream)  # its memory is not reused before this stream has read it
        with torch.cuda.stream(self.stream):
            signals = work()
            self.done.record(self.stream)
        return signals

    def wait(self, signals: PoolSignals) -> None:
        """Let the student's stream wait, and keep the memory of the signals until it has read them."""
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_event(self.done)
        for name in signals:
            signals[name].map(partial(_recorded, current))


class TeachersAhead:
    """Gives batches, and for each of them what frozen teachers say, which is asked for one batch ahead.

    The numbers are those of teachers that run in the step: the same forwards on the same batches in the same order. A
    second batch and its signals take memory.

    Args:
        pool: frozen teachers.
        variants: which variants run.
        features: record tapped activations.
        device: where the batches go.
        autocast: context of the forwards, that of the student's step.
        stream: where the teachers run; by default a stream of its own on a GPU, and in order elsewhere.
    """

    def __init__(
        self,
        pool: TeacherPool,
        variants: Sequence[str],
        features: bool,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        stream: Stream | None = None,
    ) -> None:
        self.pool, self.variants, self.features = pool, list(variants), features
        self.device, self.autocast = device, autocast
        self.stream = stream or (CudaStream(device) if device.type == "cuda" else Stream())
        self._now: tuple[Tensor, PoolSignals] | None = None

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, on the device, when the teachers have begun with the batch behind them."""
        ready: tuple[Batch, PoolSignals | None] | None = None
        for batch in loader:
            moved = to_device(batch, self.device)
            said = self.stream.start(partial(self._run, moved), moved) if len(moved["id"]) else None
            if ready is not None:
                yield self._give(*ready)
            ready = moved, said
        if ready is not None:
            yield self._give(*ready)
        self._now = None

    def __call__(self, batch: Batch) -> PoolSignals:
        """Return the signals of the batch that was given last; the teachers run for any other batch."""
        if self._now is not None and _same(self._now[0], batch["id"]):
            return self._now[1]
        return self._run(batch)

    def _give(self, batch: Batch, said: PoolSignals | None) -> Batch:
        self._now = None
        if said is not None:
            self.stream.wait(said)
            self._now = batch["id"], said
        return batch

    def _run(self, batch: Batch) -> PoolSignals:
        with torch.no_grad(), self.autocast():
            signals = self.pool(batch, self.variants, features=self.features)
        assert isinstance(signals, PoolSignals)
        return signals


def look_ahead(context: StageContext, settings: StageSettings, plan: TeacherPlan) -> TeachersAhead | None:
    """Let the live teachers of a stage run one batch ahead, if that gives the same numbers; the log says it."""
    pool, name = context.models.pool, settings.name
    if reason := why_not_ahead(pool, plan.variants, settings.transforms, settings.micro_batch):
        logger.info("stage '%s': teachers don't run one batch ahead: %s", name, reason)
        return None
    logger.info("stage '%s': teachers run one batch ahead", name)
    return TeachersAhead(pool, plan.variants, plan.features, context.device, context.accelerator.autocast)


def why_not_ahead(
    pool: TeacherPool, variants: Sequence[str], transforms: Sequence[Transform] = (), micro_batch: int | None = None
) -> str | None:
    """Return why teachers can't run one batch ahead of the student, or None if they can.

    Args:
        pool: the teachers, as the stage trains them.
        variants: names that run on whole batches.
        transforms: batch transforms of the stage.
        micro_batch: rows of a forward, where it is limited.
    """
    if not variants:
        return "no teacher runs on whole batches"
    moving = {pool.variant(name).teacher for name in variants} & set(pool.followers)
    if moving or not pool.frozen(variants):
        return "teachers or masks change from step to step"
    if any(part.training for name in variants for part in pool.parts(name)):
        return "teachers or masks run in train mode"
    if transforms:
        return "transforms change the batch in the step"
    return "teachers run on a few rows at a time (micro_batch)" if micro_batch else None


def _recorded(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)
    return tensor


def _same(mine: Tensor, ids: Tensor) -> bool:
    """Tell whether two tensors of ids are the same piece of memory."""
    return mine is ids or (mine.data_ptr() == ids.data_ptr() and mine.shape == ids.shape and mine.device == ids.device)
