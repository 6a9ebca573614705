"""Ablations of the tiny kinds, and their runs in this process."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from moekd.ablation import Ablation, Plan, load_ablation
from moekd.ablation.events import Job, Outcome, begin_log
from moekd.ablation.run import run_job
from moekd.ablation.worker import perform

from ..engine.tiny import full, simple

#: Three stages of one epoch: co-training, masks, distillation with a router.
BASE: dict[str, Any] = full()
BASE["baselines"] = {}
BASE["trainer"] = {**BASE["trainer"], "keep": 2, "checkpoint_every": None}
for _stage in BASE["stages"]:
    _stage["epochs"] = 1
#: One stage of two steps without teachers.
QUICK = simple({"steps": 2})
#: One stage that routes among two teachers, which nobody trains.
ROUTED_ONLY = {
    **QUICK,
    "teachers": {name: BASE["teachers"][name] | {"taps": []} for name in ("right", "both")},
    "router": BASE["router"],
    "stages": [{"name": "distill", "trains": ["student", "router"], "steps": 2, "objectives": ["routed_kd"]}],
}
TIMES = ("seconds_per_step", "seconds", "peak_memory_mb")


def write_ablation(
    folder: Path, arms: Mapping[str, Any], recipe: Mapping[str, Any] = BASE, name: str = "small", **keys: Any
) -> Path:
    """Write an ablation file with its base config beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(copy.deepcopy(dict(recipe)), sort_keys=False))
    raw = {"base": "base.yaml", "arms": dict(arms), "seeds": 1} | keys
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}, sort_keys=False))
    return path


def make_ablation(folder: Path, arms: Mapping[str, Any], recipe: Mapping[str, Any] = BASE, **keys: Any) -> Ablation:
    """Return a loaded ablation."""
    return load_ablation(write_ablation(folder, arms, recipe, **keys))


class HereBackend:
    """Runs each job at once, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended: list[Outcome] = []
        self.ran: list[str] = []

    def start(self, slot: int, job: Job) -> None:
        """Run the job."""
        self.ran.append(job["key"])
        answer = perform(run_job, job, self.folder, begin_log(self.folder, job["key"]).resolve())
        self.ended.append(Outcome(slot, answer.state, answer.text))

    def wait(self, seconds: float) -> list[Outcome]:
        """Return what ended since the last call."""
        ended, self.ended = self.ended, []
        return ended

    def stop(self) -> None:
        """Nothing is running between two calls."""

    kill = close = stop


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[HereBackend]:
    """Let `ablate` run its jobs in this process, which knows the tiny kinds; return the backends that it makes."""
    made: list[HereBackend] = []

    def backend(folder: Path) -> HereBackend:
        made.append(HereBackend(folder))
        return made[-1]

    monkeypatch.setattr("moekd.ablation.dispatch.LocalBackend", backend)
    return made


def results_of(folder: Path, key: str) -> dict[str, Any]:
    """Return the results of a run without its times and name."""
    results = json.loads((folder / key / "results.json").read_text())
    times = ("seconds", "train_seconds", "peak_memory_mb")
    results["stages"] = [{k: v for k, v in stage.items() if k not in times} for stage in results["stages"]]
    return {k: v for k, v in results.items() if k not in ("seconds", "name", "title", "titles")}


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without what another run of the same would not repeat."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def job_named(plan: Plan, arm: str, seed: int = 0, setting: str = "") -> dict[str, Any]:
    """Return the run of an arm."""
    place = (setting, arm, seed)
    return next(job for job in plan.jobs if (job["setting"], job["arm"], job["seed"]) == place)
