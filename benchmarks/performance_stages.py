"""The three stages of MST-Distill with the published networks and masks, ours against the published loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..cache import Needs, TeacherPass, cache_in_memory
from ..stages import RunData
from ..teachers import TeacherPool
from .performance_engine import EngineArm, av_mnist, make_data, plain_rows, published_pool
from .performance_overhead import Bench
from .performance_published import Image, PlainLoop, published_teachers
from .performance_timing import Round, Times, interval, row

STAGES = ("cotrain", "specialise", "distill")
TITLES = {"cotrain": "stage 1", "specialise": "stage 2", "distill": "stage 3"}
TARGETS = {"cotrain": "", "specialise": "at least 3", "distill": "at least 100"}
#: Rows of the training split and of a batch, and epochs of a stage, as published.
ROWS, BATCH, EPOCHS = 42_000, 512, 100
#: Rows of a batch here: the published loop takes about 1 GB for 20 rows in stage 2.
CPU_BATCH = 64


def stages(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the cost of a step of each stage, theirs over ours, and the projected cost of the published schedule."""
    batch = 4 if bench.quick else CPU_BATCH if bench.device.type == "cpu" else BATCH
    shapes = av_mnist(batch, 1)
    case = f"{shapes.title}, image student, {batch} rows"
    loop = PlainLoop(Image(), ["image"], published_teachers(), 10, bench.device, autocast=bench.accelerator.autocast)
    rows, measured = plain_rows(shapes), {}
    for stage in STAGES:
        data = make_data(shapes, (8 if stage == "distill" else 1) * batch)
        ours = EngineArm(stage, shapes.student(), published_pool(), data, bench.accelerator)
        arms: dict[str, Round] = {"published loop": _epochs(loop, stage, rows, batch), "moekd": ours}
        if stage == "distill":
            empty = EngineArm("alone", shapes.student(), TeacherPool({}), data, bench.accelerator)
            arms["student alone"] = empty
        measured[stage] = times = bench.take_turns(arms, 4)
        for arm in arms:
            yield row("stages", case, arm, f"{TITLES[stage]}, step", 1000 * times.median(arm), "ms")
        ratio = times.ratio("published loop", "moekd")
        yield row("stages", case, "moekd", f"{TITLES[stage]}, times less", ratio, "x", TARGETS[stage])
        del ours, arms
    overhead = measured["distill"].ratio("moekd", "student alone")
    yield row("stages", case, "moekd", "stage 3, over the student alone", overhead, "")
    yield from _projected(bench, case, batch, measured)


def _projected(bench: Bench, case: str, batch: int, measured: dict[str, Times]) -> Iterator[dict[str, Any]]:
    """Yield the cost of the whole schedule: 100 epochs of each stage, and one pass of teachers to fill the cache."""
    filled = interval([_fill_seconds(bench, batch) for _ in range(1 if bench.quick else 3)])
    yield row("stages", case, "moekd", "filling the cache of stage 3, a row", 1000 * filled.median, "ms")
    steps = EPOCHS * ROWS / batch
    hours = {
        arm: [steps * sum(parts) / 3600 for parts in zip(*(m.rounds[arm] for m in measured.values()), strict=True)]
        for arm in ("published loop", "moekd")
    }
    hours["moekd"] = [value + filled.median * ROWS / 3600 for value in hours["moekd"]]
    for arm, values in hours.items():
        yield row("stages", case, arm, "100/100/100 epochs of 42,000 rows", interval(values), "h")
    ratio = interval([theirs / ours for theirs, ours in zip(hours["published loop"], hours["moekd"], strict=True)])
    yield row("stages", case, "moekd", "100/100/100 epochs, times less", ratio, "x", "at least 3")


def _fill_seconds(bench: Bench, batch: int) -> float:
    """Return the seconds a row of filling a cache with the logits of all variants."""
    data: RunData = make_data(av_mnist(batch, 1), 2 * batch)
    pool = published_pool().to(bench.device).requires_grad_(False).eval()
    teachers = TeacherPass(
        *(pool, pool.experts, Needs(logits=True), data.split("train"), "train", batch, bench.device),
        autocast=bench.accelerator.autocast,
    )
    start = bench.clock.now()
    cache_in_memory(teachers)
    return (bench.clock.now() - start) / (2 * batch)


def _epochs(loop: PlainLoop, stage: str, rows: Any, batch: int) -> Round:
    return lambda: loop.epoch(stage, rows, batch)
