"""Peak memory of a stage, each arm in a process of its own, and whether memory grows over many steps."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator

from ..teachers import TeacherPool
from .performance_baseline import published_loop
from .performance_engine import (
    Cache,
    EngineArm,
    Shapes,
    av_mnist,
    make_data,
    make_pool,
    plain_rows,
    published_pool,
    small_cnn,
)
from .performance_overhead import Bench
from .performance_stages import CPU_BATCH
from .performance_timing import row

STEPS = 2000
#: Small enough for so many steps.
TINY = Shapes(
    "small_cnn, 12 and 24 channels, 16 rows of 16 x 16 pixels",
    {"image": (3, 16, 16)},
    *(98, 16, 20, small_cnn((12, 24), 48), small_cnn((12, 24), 48), {"pool": 24, "fc1": 48}),
    hidden_factor=4,
)


def memory(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the peak of each stage at the shapes of AV-MNIST, in both loops, and the growth over 2,000 steps."""
    batch = 4 if bench.quick else CPU_BATCH
    case = f"AV-MNIST, image student, {batch} rows"
    for stage in ("alone", "cotrain", "specialise", "distill"):
        for arm in ("moekd", "published loop"):
            found = _in_a_process(bench, arm, stage, batch)
            yield row("memory", case, arm, f"{stage}: peak", found["peak"] / 2**20, "MB")
    steps = 80 if bench.quick else STEPS
    for arm in ("cached", "live"):
        found = _in_a_process(bench, arm, "distill", steps)
        grown = (found["after"] - found["before"]) / 2**20
        what = f"growth of memory from step {steps // 4} to {steps}"
        yield row("memory", TINY.title, arm, what, grown, "MB", "at most 8")


def _in_a_process(bench: Bench, *words: Any) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, bench.device.type, bench.accelerator.mixed_precision, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak(accelerator: Accelerator, arm: str, stage: str, batch: int) -> dict[str, float]:
    """Return the most memory that two steps of a stage take, in bytes."""
    shapes = av_mnist(batch, 2)
    step: Callable[[], int]
    if arm == "moekd":
        pool = TeacherPool({}) if stage == "alone" else published_pool()
        step = EngineArm(stage, shapes.student(), pool, make_data(shapes), accelerator)
    else:
        loop, rows = published_loop(accelerator, alone=stage == "alone"), plain_rows(shapes)

        def step() -> int:
            return loop.epoch(stage, rows, batch)

    step()
    if accelerator.device.type == "cuda":
        return {"peak": float(torch.cuda.max_memory_allocated())}
    return {"peak": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024}


def growth(accelerator: Accelerator, arm: str, stage: str, steps: int) -> dict[str, float]:
    """Return the memory after a quarter of the steps and after all of them, in bytes."""
    cache: Cache = "memory" if arm == "cached" else "off"
    run = EngineArm(stage, TINY.student(), make_pool(TINY, 4), make_data(TINY), accelerator, cache)
    found, done = {}, 0
    for name, until in (("before", steps // 4), ("after", steps)):
        while done < until:
            done += run()
        found[name] = _now(accelerator)
    return found


def _now(accelerator: Accelerator) -> float:
    if accelerator.device.type == "cuda":
        return float(torch.cuda.memory_allocated())
    with open("/proc/self/statm", encoding="ascii") as file:
        return float(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    device, precision, name, what, number = sys.argv[1:]
    if device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    where = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    measure = growth if name in ("cached", "live") else peak
    print(json.dumps(measure(where, name, what, int(number))))
