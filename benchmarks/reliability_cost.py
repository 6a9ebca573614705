"""What the checks of a step and a checkpoint cost, at the student of the quickstart."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from ..checkpoint import find_latest, load_checkpoint
from ..recipe import Recipe
from ..stages.train import TrainLoop
from ..tracking import RunFolder
from ..trainer import Trainer

#: The settings of the quickstart, on rows enough for a few batches.
ROWS = ("data.max_train=512", "trainer.threads=1", "trainer.trackers=[]", "trainer.device=cpu")
#: Steps of a round, and of the ones that are not counted.
STEPS, WARM = 8, 4


class Timed:
    """Takes the place of an object and adds up the processor's time in its methods.

    Args:
        inner: the object.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **keywords: Any) -> Any:
            started = time.process_time()
            try:
                return value(*arguments, **keywords)
            finally:
                self.seconds += time.process_time() - started

        return call


def costs(work: Path, rounds: int) -> list[dict[str, Any]]:
    """Measure the stage `distill` of the quickstart on one thread: what of a step goes into checks, and saves.

    The time of a step is the processor's, in this process; that of a checkpoint is on the wall, with all it waits for.

    Args:
        work: an empty folder.
        rounds: rounds of 8 steps, and saves.
    """
    recipe = Recipe.load("quickstart", ROWS)
    program = Recipe(recipe.config.model_copy(update={"baselines": {}}), recipe.source).build()
    trainer = Trainer(program, RunFolder(work, "cost"), quiet=True)
    phase, last = program.phases[0], len(program.phases[0].stages) - 1
    trainer.state.stage = last
    trainer.state.note_trained(["teachers"], program.pool)
    context = trainer.context(phase)
    loop = TrainLoop(phase.stages[last].settings, context, None)
    batches = list(context.train_loader("distill", 0))
    share, step, checks = _overhead(loop, batches, rounds)
    saves, loads, size = [], [], 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        trainer.save(loop.state_dict())
        saves.append(time.perf_counter() - started)
        newest, _ = find_latest(trainer.run_folder.checkpoints)
        assert newest is not None
        started = time.perf_counter()
        load_checkpoint(newest)
        loads.append(time.perf_counter() - started)
        size = sum(path.stat().st_size for path in newest.iterdir()) / 1e6
    said = f"{1e3 * checks:.2f} of {1e3 * step:.2f} ms of the processor"
    return [
        {"case": "checks of a step", "trials": rounds, "value": 100 * share, "unit": "%", "target": 2.0, "said": said},
        {
            "case": "saving a checkpoint",
            "trials": rounds,
            "value": statistics.median(saves),
            "unit": "s",
            "target": 3.0,
            "said": f"{size:.1f} MB, slowest {max(saves):.2f} s",
        },
        {"case": "loading and checking it", "trials": rounds, "value": statistics.median(loads), "unit": "s"},
    ]


def _overhead(loop: TrainLoop, batches: list[Any], rounds: int) -> tuple[float, float, float]:
    """Return the share that the checks add to a step, and the seconds of a step and of its checks (medians of rounds).

    Checks are those of losses and gradients, what recovery from bad steps does, and the alarm of the router.
    """
    router = loop.context.models.router
    assert router is not None
    parts = [(loop, "guard"), (loop, "recovery"), (router, "alarm")]
    timers = [Timed(getattr(owner, name)) for owner, name in parts]
    for (owner, name), timer in zip(parts, timers, strict=True):
        owner.__dict__.get("_modules", {}).pop(name, None)
        owner.__dict__[name] = timer

    def steps(count: int) -> tuple[float, float]:
        for timer in timers:
            timer.seconds = 0.0
        started = time.process_time()
        for index in range(count):
            loop.state.batch = 0
            loop.run_batch(batches[index % len(batches)])
        return (time.process_time() - started) / count, sum(timer.seconds for timer in timers) / count

    steps(WARM)
    found = [steps(STEPS) for _ in range(rounds)]
    share = statistics.median(checks / (step - checks) for step, checks in found)
    return share, statistics.median(step for step, _ in found), statistics.median(checks for _, checks in found)
