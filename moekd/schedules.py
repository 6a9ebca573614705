"""Scalar schedules for loss weights and temperatures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .registry import Registry


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        epoch: index of the running epoch, from 0.
        fraction: share of the stage that is done, in [0, 1].
    """

    epoch: int = 0
    fraction: float = 0.0


class Schedule:
    """A number that changes over a stage; `schedule(progress) -> float`."""

    def __call__(self, progress: Progress) -> float:
        """Return the value at `progress`."""
        raise NotImplementedError


SCHEDULES: Registry[Schedule] = Registry("schedule", "schedules", base=Schedule)


@SCHEDULES.register("constant")
class Constant(Schedule):
    """The same value all the time.

    Args:
        value: the value.
    """

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def __call__(self, progress: Progress) -> float:
        """Return the value."""
        return self.value


@SCHEDULES.register("step_decay")
class StepDecay(Schedule):
    """Multiply by `gamma` after every `every` epochs: `start * gamma ** (epoch // every)`.

    The released MST-Distill code (arXiv 2507.07015) tests `epoch % every == 0` at the end of an epoch, so its first
    drop comes after the very first epoch; `first_epoch_decay` reproduces that: `start * gamma ** ceil(epoch / every)`.

    Args:
        start: value of the first epoch.
        every: epochs between two drops.
        gamma: factor of a drop.
        first_epoch_decay: drop after the first epoch already.
    """

    def __init__(
        self, start: float = 1.0, every: int = 30, gamma: float = 0.5, first_epoch_decay: bool = False
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 epoch, found {every}")
        self.start, self.every, self.gamma, self.first_epoch_decay = start, every, gamma, first_epoch_decay

    def __call__(self, progress: Progress) -> float:
        """Return the value of the running epoch."""
        drops = -(-progress.epoch // self.every) if self.first_epoch_decay else progress.epoch // self.every
        return self.start * self.gamma**drops


@SCHEDULES.register("linear")
class Linear(Schedule):
    """A straight line from `start` to `end` over the stage, or over its first part.

    Args:
        start: value at the beginning.
        end: value at the end.
        until: share of the stage after which the value stays at `end`; 0.1 is the first of ten epochs.
    """

    def __init__(self, start: float = 1.0, end: float = 0.0, until: float = 1.0) -> None:
        if not 0 < until <= 1:
            raise ValueError(f"until must be in (0, 1], found {until}")
        self.start, self.end, self.until = start, end, until

    def __call__(self, progress: Progress) -> float:
        """Return the value at the share of the stage that is done."""
        return self.start + (self.end - self.start) * min(1.0, progress.fraction / self.until)


@SCHEDULES.register("cosine")
class Cosine(Schedule):
    """Half a cosine from `start` to `end` over the stage.

    Args:
        start: value at the beginning.
        end: value at the end.
    """

    def __init__(self, start: float = 1.0, end: float = 0.0) -> None:
        self.start, self.end = start, end

    def __call__(self, progress: Progress) -> float:
        """Return the value at the share of the stage that is done."""
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress.fraction))


@SCHEDULES.register("exponential")
class Exponential(Schedule):
    """From `start` to `end` by equal factors in equal times: `start * (end / start) ** fraction`.

    Args:
        start: value at the beginning, above 0.
        end: value at the end, above 0.
    """

    def __init__(self, start: float = 1.0, end: float = 0.1) -> None:
        if not (start > 0 and end > 0):
            raise ValueError(f"start and end must be above 0, found {start} and {end}")
        self.start, self.end = start, end

    def __call__(self, progress: Progress) -> float:
        """Return the value at the share of the stage that is done."""
        return self.start * (self.end / self.start) ** progress.fraction


@SCHEDULES.register("warmup")
class Warmup(Schedule):
    """Rise linearly from 0 to `value` over the first `share` of the stage, then stay.

    Args:
        value: value after the warm-up.
        share: share of the stage that the warm-up takes, in (0, 1].
    """

    def __init__(self, value: float = 1.0, share: float = 0.1) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], found {share}")
        self.value, self.share = value, share

    def __call__(self, progress: Progress) -> float:
        """Return the value at the share of the stage that is done."""
        return self.value * min(1.0, progress.fraction / self.share)
