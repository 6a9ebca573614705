"""What a trainer runs: the main stages, then the baselines, over shared data and teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .cache import CacheSettings
from .model import Model
from .routers import Router
from .stages import RunData, Stage
from .step import Models
from .teachers import Stacking, TeacherPool


@dataclass(frozen=True)
class Phase:
    """Stages that train one student.

    Attributes:
        name: "main" or a baseline's name.
        title: name in tables.
        student: a freshly initialised student.
        router: of this phase, if any.
        stages: in order.
        after: stage of the main phase whose student this phase starts from; None starts from the fresh one.
        stacking: how masks of one teacher meet in this phase.
    """

    name: str
    title: str
    student: Model
    router: Router | None
    stages: list[Stage]
    after: str | None = None
    stacking: Stacking = "independent"


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs; see `trainer` in the config reference."""

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: int = 20
    checkpoint_every: int | None = None
    keep: int = 2
    trackers: tuple[str, ...] = ("tensorboard",)
    deterministic: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    overlap: bool = False
    on_nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    max_nonfinite: int = 10
    on_failed_save: Literal["stop", "wait", "continue"] = "stop"
    timeout_minutes: float = 30.0


@dataclass(frozen=True)
class Program:
    """A recipe with everything built.

    Attributes:
        phases: "main" first; baselines start from a fresh student and find the teachers as the main phase left them.
        pool: teachers and masks.
        data: splits and loaders.
        test_splits: names of the splits to test on.
        loop: settings of the loop.
        config: the resolved configuration, for the run folder and for resuming.
        dataset_fingerprint: identity of the data.
        about: further facts for reports (title, data set, student).
        cache: codecs and limits of teachers' signals that are kept.
        headline: metric that tables and comparisons are about; None: what is known of the student.
        resolve: gives a resolved config of an earlier version today's defaults for the keys that it lacks.
    """

    phases: list[Phase]
    pool: TeacherPool
    data: RunData
    test_splits: list[str]
    loop: LoopSettings
    config: dict[str, Any]
    dataset_fingerprint: str
    seed: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    headline: str | None = None
    cache: CacheSettings = field(default_factory=CacheSettings)
    resolve: Callable[[Mapping[str, Any]], dict[str, Any]] = dict

    def models(self, phase: Phase) -> Models:
        """Return what the stages of a phase work on; the pool stacks its masks as the phase says."""
        self.pool.mask_stacking = phase.stacking
        return Models(phase.student, self.pool, phase.router)
