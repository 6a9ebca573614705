"""One batch with lazy access to what everybody says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .errors import ModelError
from .model import Batch, Model
from .routers import Router, Routing
from .schedules import Progress
from .signals import PoolSignals, Signals
from .teachers import TeacherPool

TeacherSource = Callable[[Batch], PoolSignals]


@dataclass(frozen=True)
class Models:
    """The callables of a run: student, teacher pool (empty without teachers), and router if there is one."""

    student: Model
    pool: TeacherPool
    router: Router | None = None


class Step:
    """What objectives, gates and transforms see of a training step; signals are computed on first use.

    Args:
        batch: fields `[B, ...]`.
        models: student, pool, router.
        progress: how far the stage is.
        training: False during validation.
        variants: teachers and variants that the stage needs; each teacher runs once for all of them.
        features: record the teachers' taps.
        cache: gives the signals of frozen teachers by sample id instead of running them.
    """

    def __init__(
        self,
        batch: Batch,
        models: Models,
        progress: Progress | None = None,
        training: bool = True,
        variants: Sequence[str] | None = None,
        features: bool = False,
        cache: TeacherSource | None = None,
    ) -> None:
        self.batch, self.models = batch, models
        self.progress = progress or Progress()
        self.training, self.features, self.cache = training, features, cache
        self._variants = list(models.pool.experts if variants is None else variants)

    @property
    def pool(self) -> TeacherPool:
        """The teacher pool."""
        return self.models.pool

    @cached_property
    def student(self) -> Signals:
        """What the student says."""
        return self.models.student(self.batch)

    @cached_property
    def teachers(self) -> PoolSignals:
        """What the experts on the axis T say: the masked variants, or the plain teachers where there are none."""
        experts = self.pool.experts
        if self._variants == experts:
            return self._planned
        if set(experts) <= set(self._variants):
            return PoolSignals({name: self._planned[name] for name in experts})
        return self.pool(self.batch, experts, features=self.features)

    @cached_property
    def routing(self) -> Routing:
        """What the router decided.

        Raises:
            ModelError: the recipe has no router.
        """
        if self.models.router is None:
            raise ModelError("an objective needs a router, but the recipe has none; add a 'router' section")
        return self.models.router(self)

    @property
    def routed(self) -> Routing | None:
        """The routing if one was computed in this step, else None."""
        return self.__dict__.get("routing")

    def signals(self, name: str) -> Signals:
        """Return what the student ("student"), a teacher or a variant says."""
        if name == "student":
            return self.student
        if name in self._variants:
            return self._planned[name]
        return self._extra(name)

    @property
    def routes_rows_first(self) -> bool:
        """True when teachers may run on their own rows only: a hard choice, made without teachers that ran."""
        router = self.models.router
        ran = self.__dict__.keys() & {"_planned", "teachers"}
        if router is None or self.cache is not None or ran or self._variants:
            return False
        return not router.needs_teachers and self.routing.chosen is not None

    def run_rows(self, rows: Mapping[str, Tensor]) -> PoolSignals:
        """Run every teacher on the rows of its variants only."""
        return self.pool(self.batch, variants=list(rows), rows=rows, features=self.features)

    @cached_property
    def _planned(self) -> PoolSignals:
        if self.cache is not None:
            return self.cache(self.batch)
        return self.pool(self.batch, self._variants, features=self.features)

    def _extra(self, name: str) -> Signals:
        extras = self.__dict__.setdefault("_extras", {})
        if name not in extras:
            extras[name] = self.pool(self.batch, [name], features=self.features)[name]
        signals: Signals = extras[name]
        return signals
