"""What a step with T teachers costs against a step of the student alone, and what routing and the engine add.

Shapes: T teacher variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from ..teachers import TeacherPool
from .performance_engine import (
    EngineArm,
    Shapes,
    make_data,
    make_pool,
    plain_arm,
    plain_teachers,
    shapes_for,
)
from .performance_timing import Clock, Round, Times, interval, row, take_turns

TEACHERS = (1, 2, 4, 8, 16)
#: A step that is long enough for the share of the engine to count, in seconds.
LONG_STEP = 0.2


@dataclass(frozen=True)
class Bench:
    """How a part measures.

    Attributes:
        accelerator: device and precision.
        quick: few rounds and small sizes, to try the command.
        rounds: rounds of each arm; None: what the part takes by itself.
    """

    accelerator: Accelerator
    quick: bool = False
    rounds: int | None = None
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clock", Clock(self.accelerator.device))

    def another_accelerator(self) -> Accelerator:
        """Return one of the same device and precision for a single arm."""
        return Accelerator(cpu=self.device.type == "cpu", mixed_precision=self.accelerator.mixed_precision)

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.accelerator.device

    def take_turns(self, arms: dict[str, Round], rounds: int) -> Times:
        """Return the times of arms in turns."""
        return take_turns(arms, 2 if self.quick else self.rounds or rounds, self.clock)


def overhead(bench: Bench, cases: Mapping[str, Shapes] | None = None) -> Iterator[dict[str, Any]]:
    """Yield O(T), a step with T teacher variants over one of the student alone, for four ways to run them."""
    counts = (1, 4) if bench.quick else TEACHERS
    for name, shapes in (cases or shapes_for(bench.device.type, bench.quick)).items():
        alone = _engine(bench, shapes, "alone", TeacherPool({}))
        cached = {count: _engine(bench, shapes, "distill", make_pool(shapes, count), "memory") for count in counts}
        arms: dict[str, Round] = {"": alone, **{str(count): arm for count, arm in cached.items()}}
        times = bench.take_turns(arms, 11)
        yield row("overhead", shapes.title, "student alone", "step", 1000 * times.median(""), "ms")
        target = "at most 1.10" if name == "smallest" and bench.device.type == "cpu" else "at most 1.05"
        for count in counts:
            yield row("overhead", shapes.title, "cached", f"O({count})", times.ratio(str(count), ""), "", target)
        most, few = str(counts[-1]), "2" if 2 in counts else str(counts[0])
        flat = times.ratio(most, few)
        yield row("overhead", shapes.title, "cached", f"step of T = {most} over T = {few}", flat, "", "at most 1.10")
        yield from _live(bench, shapes.short(), counts)


def _live(bench: Bench, shapes: Shapes, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield O(T) where teachers run in every step."""
    for count in counts:
        shared = _engine(bench, shapes, "distill", make_pool(shapes, count), "off")
        shared.loop.module.variants = list(shared.models.pool.experts)
        arms: dict[str, Round] = {
            "live shared": shared,
            "live routed": _engine(bench, shapes, "distill", make_pool(shapes, count), "off"),
            "every variant in full": plain_arm(shapes, count, bench.device, bench.accelerator.autocast),
        }
        alone: dict[str, Round] = {"": _engine(bench, shapes, "alone", TeacherPool({}))}
        times = bench.take_turns(alone | arms, 3)
        for arm in arms:
            yield row("overhead", shapes.title, arm, f"O({count})", times.ratio(arm, ""), "")


def routing(bench: Bench, case: Shapes | None = None) -> Iterator[dict[str, Any]]:
    """Yield what four live teachers cost, all of them or the routed one, and what the engine adds to their forwards."""
    larger = shapes_for(bench.device.type, bench.quick)["larger"]
    shapes = case or larger.short(batch=512 if bench.device.type == "cpu" else None)
    alone = Inside(bench, _engine(bench, shapes, "alone", TeacherPool({})))
    every = Inside(bench, _engine(bench, shapes, "distill", plain_teachers(shapes, 4), "off"))
    every.arm.loop.module.variants = list(every.arm.models.pool.experts)
    routed = _engine(bench, shapes, "distill", plain_teachers(shapes, 4), "off")
    arms: dict[str, Round] = {"student alone": alone, "all four": every, "routed, one of four": routed}
    times = bench.take_turns(arms, 7)
    for arm in arms:
        yield row("routing", shapes.title, arm, "step", 1000 * times.median(arm), "ms")
    cost = times.combined(lambda t: _beyond(t, "routed, one of four") / _beyond(t, "all four"))
    yield row("routing", shapes.title, "routed, one of four", "teachers' cost over all four", cost, "", "at most 0.40")
    rounds = [times.rounds["all four"], every.rounds[1:], times.rounds["student alone"], alone.rounds[1:]]
    share = interval([100 * ((a - b) - (c - d)) / a for a, b, c, d in zip(*rounds, strict=True)])
    long = times.median("all four") >= LONG_STEP or bench.device.type == "cuda"
    target = "at most 3" if long else f"at most 3 (only at steps of {1000 * LONG_STEP:.0f} ms)"
    yield row("routing", shapes.title, "all four", "engine overhead", share, "%", target)


class Inside:
    """An arm that also notes what it spends in forwards of networks, in backward and in the optimizer, a step a round.

    A step less this is what loader, losses, routing and checks take: a small number, whose difference between two arms
    other work on the machine disturbs less than that of the steps.
    """

    def __init__(self, bench: Bench, arm: EngineArm) -> None:
        self.arm, self.clock, self.spent = arm, bench.clock, 0.0
        self.rounds: list[float] = []
        pool = arm.models.pool
        for network in (arm.models.student.network, *(pool.teacher(name).network for name in pool.names)):
            network.forward = self._timed(network.forward)
        arm.loop.optimizer.step = self._timed(arm.loop.optimizer.step)
        arm.accelerator.backward = self._timed(arm.accelerator.backward)

    def __call__(self) -> int:
        """Run an epoch; return the number of steps."""
        self.spent = 0.0
        steps = self.arm()
        self.rounds.append(self.spent / steps)
        return steps

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start = self.clock.now()
            try:
                return function(*args, **options)
            finally:
                self.spent += self.clock.now() - start

        return run


def _beyond(times: Any, arm: str) -> float:
    return float(times[arm] - times["student alone"])


def _engine(bench: Bench, shapes: Shapes, stage: str, pool: TeacherPool, cache: Any = "auto") -> EngineArm:
    return EngineArm(stage, shapes.student(), pool, make_data(shapes), bench.another_accelerator(), cache)
