"""What a stage is: which modules train, on which losses, for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..registry import Injected, Registry
from ..step import Models
from ..transforms import Transform
from .training_step import WeightedObjective

if TYPE_CHECKING:
    from .context import RunData, StageContext


@dataclass(frozen=True)
class Monitor:
    """What decides which epoch's weights are kept, and when to stop early.

    Attributes:
        metric: "accuracy", "loss", ... of the student on the split, or the name of an objective ("kd_to_student").
        mode: "max" or "min".
        split: validation split.
    """

    metric: str
    mode: Literal["min", "max"] = "min"
    split: str = "val"

    def better(self, value: float, best: float | None) -> bool:
        """Tell whether `value` beats `best`, strictly."""
        if best is None or best != best:
            return True
        return value < best if self.mode == "min" else value > best


MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer, int], LRScheduler]


@dataclass(frozen=True)
class StageSettings:
    """The part of a stage that every kind has.

    Attributes:
        name: the stage's name in the recipe and the log.
        trains: of `student`, `teachers`, `teachers.<name>`, `masks`, `router`; all else is frozen.
        objectives: weighted losses.
        transforms: what is done to a training batch.
        optimizer: makes the optimizer from the trainable parameters.
        scheduler: makes a learning-rate scheduler from the optimizer and the number of steps; stepped after each of
            them.
        epochs, steps: length of the stage; one of the two.
        monitor: which epoch's weights are kept; None keeps the last.
        patience: epochs without a better metric until the stage ends.
        clip_norm: largest norm of the gradient.
        accumulate: batches for one optimizer step.
        micro_batch: rows of a forward of the models, of one process, while losses see the whole batch (gradient
            caching); None: all rows at once.
        ema: decay of the moving average of the student's weights, which is validated and kept in place of the raw
            weights.
        cache: may the signals of frozen teachers be computed once: `auto` decides, `memory` and `disk` insist, `off`
            never.
        split: what the stage trains on.
    """

    name: str
    trains: Sequence[str]
    objectives: Sequence[WeightedObjective]
    transforms: Sequence[Transform] = ()
    optimizer: MakeOptimizer = torch.optim.Adam
    scheduler: MakeScheduler | None = None
    epochs: int | None = None
    steps: int | None = None
    monitor: Monitor | None = None
    patience: int | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    micro_batch: int | None = None
    ema: float | None = None
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    split: str = "train"


class Stage:
    """A part of a recipe; `run` trains (or builds, or searches) and leaves the result in the models.

    Args:
        settings: what every kind of stage has.
    """

    #: False for kinds that set something by themselves, so that they may train nothing.
    needs_training = True

    def __init__(self, settings: Injected[StageSettings]) -> None:
        self.settings = settings

    @property
    def name(self) -> str:
        """The stage's name in the recipe."""
        return self.settings.name

    @property
    def splits(self) -> list[str]:
        """Splits that the stage learns from."""
        return [self.settings.split]

    @property
    def idle(self) -> bool:
        """True where nothing trains, so that the stage sets something and no more."""
        return not self.needs_training and not self.settings.trains

    @property
    def changes(self) -> list[str]:
        """Models that are others after the stage, in the names of `trains`."""
        return list(self.settings.trains)

    def check(self, models: Models, data: RunData) -> None:
        """Refuse what can't work, before anything is trained.

        Raises:
            ConfigError: what it is.
        """

    def run(self, context: StageContext, resume: Mapping[str, Any] | None = None) -> None:
        """Run the stage, from the start or from the state that it gave to `context.save`."""
        raise NotImplementedError


STAGES: Registry[Stage] = Registry("stage kind", "stages", base=Stage)
