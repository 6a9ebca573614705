"""The three stages of MST-Distill with the published networks and masks, ours against the published loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

from ..cache import CacheSettings
from ..stages import RunData
from ..teachers import TeacherPool
from .performance_baseline import BaselineProcess, published_loop
from .performance_engine import EngineArm, av_mnist, make_data, plain_rows, published_pool
from .performance_overhead import Bench
from .performance_published import PlainLoop
from .performance_timing import Round, Times, interval, row

#: The published loop in its own process, and in ours, where freed memory is kept as in runs of `moekd distill`.
PUBLISHED, KEPT = "published loop", "published loop, freed memory kept"
#: The arm whose masks are another, cheaper function; what they are worth is measured in `ablations/masks.yaml`.
FACTORISED = "moekd, factorised masks"
STAGES = ("cotrain", "specialise", "distill")
TITLES = {"cotrain": "stage 1", "specialise": "stage 2", "distill": "stage 3"}
TARGETS = {"cotrain": "", "specialise": "at least 3", "distill": "at least 100"}
#: Rows of the training split and of a batch, and epochs of a stage, as published.
ROWS, BATCH, EPOCHS = 42_000, 512, 100
#: Rows of a batch here: the published loop takes about 1 GB for 20 rows in stage 2.
CPU_BATCH = 64


def stages(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the cost of a step of each stage, theirs over ours, and the projected cost of the published schedule."""
    on_cpu = bench.device.type == "cpu"
    batch = 4 if bench.quick else CPU_BATCH if on_cpu else BATCH
    shapes = av_mnist(batch, 1)
    case = f"{shapes.title}, image student, {batch} rows"
    rows, measured, fills = plain_rows(shapes), {}, {"moekd": 0.0, FACTORISED: 0.0}
    loop = published_loop(bench.accelerator)
    with ExitStack() as stack:
        published: dict[str, Callable[[str], Round]] = {PUBLISHED: lambda stage: _epochs(loop, stage, rows, batch)}
        if on_cpu:
            process = stack.enter_context(BaselineProcess(bench.accelerator.mixed_precision, batch))
            published = {PUBLISHED: process.epochs, KEPT: published[PUBLISHED]}
        folder = stack.enter_context(TemporaryDirectory(prefix="moekd-benchmark-"))
        for stage in STAGES:
            data = make_data(shapes, (4 if stage == "distill" else 1) * batch)
            arms: dict[str, Round] = {arm: epochs(stage) for arm, epochs in published.items()}
            for arm in fills if stage != "cotrain" else ("moekd",):
                pool = published_pool(factorised=arm == FACTORISED)
                start = bench.clock.now()
                limits = _limits(data, folder)
                arms[arm] = EngineArm(stage, shapes.student(), pool, data, bench.accelerator, settings=limits)
                fills[arm] += (bench.clock.now() - start) / len(data.split("train"))
            if stage == "distill":
                arms["student alone"] = EngineArm("alone", shapes.student(), TeacherPool({}), data, bench.accelerator)
            measured[stage] = times = bench.take_turns(arms, 3)
            for arm in arms:
                yield row("stages", case, arm, f"{TITLES[stage]}, step", 1000 * times.median(arm), "ms")
            for arm in fills.keys() & arms.keys():
                for theirs in published:
                    target = TARGETS[stage] if (theirs, arm) == (PUBLISHED, "moekd") else ""
                    what = f"{TITLES[stage]}, times less{_than(theirs)}"
                    yield row("stages", case, arm, what, times.ratio(theirs, arm), "x", target)
            del arms
    overhead = measured["distill"].ratio("moekd", "student alone")
    yield row("stages", case, "moekd", "stage 3, over the student alone", overhead, "")
    yield from _projected(case, batch, measured, fills, list(published))


def _than(theirs: str) -> str:
    return "" if theirs == PUBLISHED else " than the published loop with freed memory kept"


def _projected(
    case: str, batch: int, measured: dict[str, Times], fills: dict[str, float], published: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the cost of the whole schedule: 100 epochs of each stage, and one pass of teachers for each cache."""
    steps, schedule = EPOCHS * ROWS / batch, "100/100/100 epochs of 42,000 rows"

    def hours(arm: str) -> list[float]:
        parts = [times.rounds[arm if arm in times.rounds else "moekd"] for times in measured.values()]
        filling = fills.get(arm, 0.0) * ROWS
        return [(steps * sum(one) + filling) / 3600 for one in zip(*parts, strict=True)]

    for theirs in published:
        yield row("stages", case, theirs, schedule, interval(hours(theirs)), "h")
    for arm, target in (("moekd", "at least 3"), (FACTORISED, "at least 10")):
        yield row("stages", case, arm, "filling the caches of stages 2 and 3, a row", 1000 * fills[arm], "ms")
        ours = hours(arm)
        yield row("stages", case, arm, schedule, interval(ours), "h")
        for theirs in published:
            ratio = interval([a / b for a, b in zip(hours(theirs), ours, strict=True)])
            what = f"100/100/100 epochs, times less{_than(theirs)}"
            yield row("stages", case, arm, what, ratio, "x", target if theirs == PUBLISHED else "")


def _limits(data: RunData, folder: str) -> CacheSettings:
    """Return limits that hold for these rows what the defaults hold for all.

    Vectors at taps fit in memory. Maps do not; what a factorised mask and the layers behind it read of them goes to
    disk (and from there, with so few rows, to the page cache).
    """
    share, most = len(data.split("train")) / ROWS, CacheSettings()
    return CacheSettings(folder=folder, memory_gb=share * most.memory_gb, disk_gb=share * most.disk_gb)


def _epochs(loop: PlainLoop, stage: str, rows: Any, batch: int) -> Round:
    return lambda: loop.epoch(stage, rows, batch)
