"""One run of an ablation, by the ordinary trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..config import Spec, build, parse_recipe
from ..data import DATASETS, Dataset
from ..recipe import Recipe
from ..tracking import RunFolder
from ..trainer import Trainer

#: Folder of the teachers' logits that all runs of an ablation share.
STORE = "cache"


def run_job(job: Mapping[str, Any], folder: Path) -> None:
    """Run a job in `folder/<key>`, or go on with it; afterwards `results.json` is there.

    Args:
        job: key, config and start, see `make_plan`.
        folder: of the ablation.

    Raises:
        MoekdError: whatever stops a run.
    """
    recipe = Recipe(parse_recipe(job["config"], job["key"]), job["key"])
    spec = recipe.config.data.spec
    program = recipe.build(_dataset(_Wanted(json.dumps(spec.to_dict(), sort_keys=True, default=str), spec)))
    run = RunFolder(folder, job["key"], resume=True)
    trainer = Trainer(program, run, quiet=True, store=folder / STORE)
    resume = "auto" if any(run.checkpoints.iterdir()) else None
    trainer.fit(resume, start=None if job["start"] is None else folder / job["start"])


def finished(job: Mapping[str, Any], folder: Path) -> bool:
    """Tell whether a job has its results."""
    return (folder / job["key"] / "results.json").is_file()


@dataclass(frozen=True)
class _Wanted:
    """A data set by its options."""

    text: str
    spec: Spec = field(compare=False)


@lru_cache(maxsize=2)
def _dataset(wanted: _Wanted) -> Dataset:
    """Return a data set; the runs of one process that read the same one share it."""
    dataset: Dataset = build(wanted.spec, DATASETS, where="data")
    return dataset
