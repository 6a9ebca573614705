"""Times of arms that take turns, and what is said about them.

On a CPU the time is that of the processor in this process, over all its threads: other work on the machine hardly
changes it. On a GPU it is the time on the wall, after the device has finished.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from scipy import stats


class Spent(NamedTuple):
    """What a round of work took that was done in another process."""

    steps: int
    seconds: float


#: Does one round of work and returns for how many steps it counts, with its seconds if it was not done here.
Round = Callable[[], "int | Spent"]


class Interval(NamedTuple):
    """A median and its 95 % interval, which is the whole range where there are fewer than six values."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.median)} [{_short(self.low)}, {_short(self.high)}]"


@dataclass(frozen=True)
class Clock:
    """Measures work on a device.

    Attributes:
        device: where the work is done.
    """

    device: torch.device

    def now(self) -> float:
        """Return the time in seconds, after the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()


@dataclass
class Times:
    """Seconds a step, one value a round, by arm.

    Attributes:
        rounds: by arm; the n-th values of all arms were taken one after the other.
    """

    rounds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, arm: str) -> float:
        """Return the median seconds of a step."""
        return statistics.median(self.rounds[arm])

    def ratio(self, arm: str, to: str) -> Interval:
        """Return how much longer a step of an arm takes than one of another, from the rounds in pairs."""
        return interval([a / b for a, b in zip(self.rounds[arm], self.rounds[to], strict=True)])

    def combined(self, value: Callable[[Mapping[str, float]], float]) -> Interval:
        """Return what a function of the times of one round is."""
        arms = list(self.rounds)
        rounds = zip(*self.rounds.values(), strict=True)
        return interval([value(dict(zip(arms, times, strict=True))) for times in rounds])


def take_turns(arms: Mapping[str, Round], rounds: int, clock: Clock, warm_up: int = 1) -> Times:
    """Run rounds of all arms, one after the other, the order turned around in every second round.

    Args:
        arms: work by name.
        rounds: rounds that count.
        clock: of the device.
        warm_up: rounds before them that do not.
    """
    times = Times({name: [] for name in arms})
    for number in range(-warm_up, rounds):
        for name in list(arms) if number % 2 else reversed(list(arms)):
            gc.collect()
            start = clock.now()
            done = arms[name]()
            spent = done if isinstance(done, Spent) else Spent(done, clock.now() - start)
            if number >= 0:
                times.rounds[name].append(spent.seconds / spent.steps)
    return times


def interval(values: Sequence[float]) -> Interval:
    """Return the median with the interval between two order statistics that holds the true one in 95 % of all cases."""
    ordered = sorted(values)
    skip = max(0, int(stats.binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return Interval(statistics.median(ordered), ordered[skip], ordered[len(ordered) - 1 - skip])


def row(part: str, case: str, arm: str, measure: str, value: Any, unit: str, target: str = "") -> dict[str, Any]:
    """Return a line of the table: a number, or a median with its interval."""
    spread = value if isinstance(value, Interval) else Interval(float(value), float("nan"), float("nan"))
    numbers = {"value": spread.median, "low": spread.low, "high": spread.high}
    return {"part": part, "case": case, "arm": arm, "measure": measure, **numbers, "unit": unit, "target": target}


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
