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
StudentSource = Callable[[Batch, Model], Signals]


@dataclass(frozen=True)
class Models:
    """The callables of a run: student, teacher pool (empty without teachers), and router if there is one."""

    student: Model
    pool: TeacherPool
    router: Router | None = None

    @property
    def experts(self) -> list[str]:
        """Names that the router chooses among: its own list, else all experts of the pool."""
        chosen = self.router.experts if self.router is not None else None
        return list(self.pool.experts if chosen is None else chosen)


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
        known_student: gives the signals of a frozen student in the same way.
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
        known_student: StudentSource | None = None,
    ) -> None:
        self.batch, self.models, self.known_student = batch, models, known_student
        self.progress = progress or Progress()
        self.training, self.features, self.cache = training, features, cache
        #: Losses of the first routed objective to every expert, `[B, T]`, where the router's gate reads them.
        self.expert_losses: Tensor | None = None
        self._rows_ran: PoolSignals | None = None
        self._variants = list(models.pool.experts if variants is None else variants)

    @property
    def pool(self) -> TeacherPool:
        """The teacher pool."""
        return self.models.pool

    @cached_property
    def student(self) -> Signals:
        """What the student says."""
        if self.known_student is not None:
            return self.known_student(self.batch, self.models.student)
        return self.models.student(self.batch)

    @property
    def experts(self) -> list[str]:
        """Names on the axis T of the routing: what the router chooses among."""
        return self.models.experts

    @cached_property
    def teachers(self) -> PoolSignals:
        """What all experts of the pool say: the masked variants, or the plain teachers where there are none."""
        return self._named(self.pool.experts)

    @cached_property
    def expert_signals(self) -> PoolSignals:
        """What the teachers say that the router chooses among, in the order of `experts`."""
        return self.teachers if self.experts == self.pool.experts else self._named(self.experts)

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
        ran = self.__dict__.keys() & {"_planned", "teachers", "expert_signals"}
        if router is None or self.cache is not None or ran or self._variants:
            return False
        return not router.needs_teachers and self.routing.chosen is not None

    def run_rows(self, rows: Mapping[str, Tensor]) -> PoolSignals:
        """Run every teacher on the rows that the routing gave to its variants, and on no others; once a step."""
        if self._rows_ran is None:
            self._rows_ran = self.pool(self.batch, variants=list(rows), rows=rows, features=self.features)
        return self._rows_ran

    @cached_property
    def _planned(self) -> PoolSignals:
        if self.cache is not None:
            return self.cache(self.batch)
        return self.pool(self.batch, self._variants, features=self.features)

    def _named(self, names: list[str]) -> PoolSignals:
        if self._variants == names:
            return self._planned
        if set(names) <= set(self._variants):
            return PoolSignals({name: self._planned[name] for name in names})
        return self.pool(self.batch, names, features=self.features)

    def _extra(self, name: str) -> Signals:
        extras = self.__dict__.setdefault("_extras", {})
        if name not in extras:
            extras[name] = self.pool(self.batch, [name], features=self.features)[name]
        signals: Signals = extras[name]
        return signals
