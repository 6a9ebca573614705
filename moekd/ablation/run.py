"""One run of an ablation, by the ordinary trainer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..checkpoint import rotate
from ..config import RecipeConfig, Spec, build, parse_recipe
from ..data import DATASETS, Dataset
from ..errors import DataError
from ..program import Program
from ..recipe import Recipe
from ..tracking import RunFolder
from ..trainer import Trainer
from .events import GRACE

#: Folder of the teachers' signals that all runs of an ablation share.
STORE = "cache"
#: Sections of a config that change no number of a run.
COSMETIC = ("title", "paper")


def run_job(job: Mapping[str, Any], folder: Path) -> None:
    """Run a job in `folder/<key>`, or go on with it; afterwards `results.json` and the last checkpoint are there.

    Args:
        job: key, config and start, see `make_plan`.
        folder: of the ablation.

    Raises:
        MoekdError: whatever stops a run.
    """
    run = RunFolder(folder, job["key"], resume=True)
    _wait_for_lock(run)
    if finished(job, folder):
        return
    program = build_program(parse_recipe(job["config"], job["key"]), job["key"])
    trainer = Trainer(program, run, quiet=True, store=folder / STORE)
    resume = "auto" if any(run.checkpoints.iterdir()) else None
    start = None if job["start"] is None else folder / job["start"]
    trainer.fit(resume, allow=COSMETIC, start=start)
    rotate(run.checkpoints, keep=1)


def _wait_for_lock(run: RunFolder) -> None:
    """Wait a while for a process that still saves the run, since the call that started it was killed."""
    end = time.monotonic() + GRACE
    while True:
        try:
            run.lock().acquire().release()
            return
        except DataError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def finished(job: Mapping[str, Any], folder: Path) -> bool:
    """Tell whether a job has its results, and, if others start from it, a checkpoint."""
    run = folder / job["key"]
    usable = job["arm"] is not None or any((run / "checkpoints").glob("[!.]*/manifest.json"))
    return usable and (run / "results.json").is_file()


def build_program(config: RecipeConfig, source: str) -> Program:
    """Build a config; the runs of one process that read the same data share it."""
    spec = config.data.spec
    wanted = _Wanted(json.dumps(spec.to_dict(), sort_keys=True, default=str), spec)
    return Recipe(config, source).build(_dataset(wanted))


@dataclass(frozen=True)
class _Wanted:
    """A data set by its options."""

    text: str
    spec: Spec = field(compare=False)


@lru_cache(maxsize=2)
def _dataset(wanted: _Wanted) -> Dataset:
    """Return a data set, which stays in memory for the next run."""
    dataset: Dataset = build(wanted.spec, DATASETS, where="data")
    return dataset
