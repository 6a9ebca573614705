"""What the runs of an ablation found, as plain rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_json
from ..errors import DataError
from ..tracking import read_jsonl
from .plan import Plan
from .run import finished
from .spec import Ablation

PLAN, FAILURES = "plan.json", "failures.json"
_METRICS = ("accuracy", "balanced_accuracy", "weighted_f1", "loss")


def write_plan(ablation: Ablation, plan: Plan, command: str, folder: Path) -> None:
    """Write `plan.json`, from which the report is made, also on another day."""
    about = {
        "name": ablation.name,
        "title": ablation.title,
        "baseline": ablation.baseline,
        "settings": list(ablation.settings),
        "arms": [arm.name for arm in plan.arms],
        "seeds": list(ablation.seeds),
        "metric": ablation.metric,
        "command": command,
        "inapplicable": [[*cell, reason] for cell, reason in plan.inapplicable.items()],
        "jobs": [{**job, "config": None} for job in plan.jobs],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, about)


def read_plan(folder: Path) -> dict[str, Any]:
    """Return what `write_plan` wrote.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        about = json.loads((folder / PLAN).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no folder of an ablation: {PLAN} can't be read: {error}") from error
    if not isinstance(about, dict) or "jobs" not in about:
        raise DataError(f"{folder / PLAN} is damaged: it names no jobs; start the ablation again, finished runs stay")
    return about


def note_failures(failures: Mapping[str, str], folder: Path) -> None:
    """Keep the reasons of failed jobs; those of earlier calls stay until the job is done."""
    known = _failures(folder) | dict(failures)
    open_ones = {key: text for key, text in known.items() if not finished({"key": key}, folder)}
    write_json(folder / FAILURES, open_ones)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a row for every (setting, arm, seed, test split); runs without results have one row without numbers.

    Raises:
        DataError: the folder is no ablation's.
    """
    about, failures = read_plan(folder), _failures(folder)
    rows: list[dict[str, Any]] = []
    for job in about["jobs"]:
        if job["arm"] is None:
            continue
        place = {key: job[key] for key in ("setting", "arm", "title", "seed")} | {"key": job["key"]}
        if finished(job, folder):
            rows += _done(place, job, folder)
        elif job["key"] in failures:
            rows.append(place | {"status": "failed", "reason": failures[job["key"]]})
        else:
            rows.append(place | {"status": "missing", "reason": "has not run yet"})
    for setting, arm, reason in about["inapplicable"]:
        rows.append(
            {"setting": setting, "arm": arm, "title": arm, "seed": None, "status": "inapplicable", "reason": reason}
        )
    return rows


def _done(place: dict[str, Any], job: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    run = folder / job["key"]
    results = json.loads((run / "results.json").read_bytes())
    records = [record for record in read_jsonl(run / "metrics.jsonl") if record.get("phase") == "main"]
    shared = _shared_stages(job, folder)
    ends = [record for record in records if record["type"] == "stage_end" and record["stage"] not in shared]
    steps = sum(end["steps"] for end in ends)
    cost = {
        "seconds": sum(end["seconds"] for end in ends),
        "steps": steps,
        "seconds_per_step": sum(end["train_seconds"] for end in ends) / steps if steps else None,
        "teacher_forwards_per_step": sum(end["teacher_forwards"] for end in ends) / steps if steps else None,
        "peak_memory_mb": max((end["peak_memory_mb"] for end in ends), default=None),
    }
    common = {
        "status": "done",
        "reason": "",
        "routing": results["routing"],
        "class_names": results["class_names"],
        "history": _history(records, shared),
    }
    rows = []
    for split, models in results["test"].items():
        metrics = {name: models["student"].get(name) for name in _METRICS}
        teachers = {name: models[name]["accuracy"] for name in results["teachers"] if name in models}
        rows.append(place | common | cost | metrics | {"split": split, "teachers": teachers})
    return rows


def _history(records: Sequence[Mapping[str, Any]], shared: set[str]) -> list[dict[str, Any]]:
    """Return the routing of the arm's last routed stage by epoch."""
    routed = [record for record in records if record["type"] == "routing" and record["stage"] not in shared]
    last = routed[-1]["stage"] if routed else None
    return [{key: r[key] for key in ("epoch", "shares", "entropy")} for r in routed if r["stage"] == last]


def _shared_stages(job: Mapping[str, Any], folder: Path) -> set[str]:
    """Return the names of the stages that the job took over."""
    if job["start"] is None:
        return set()
    records = read_jsonl(folder / job["start"] / "metrics.jsonl")
    return {record["stage"] for record in records if record["type"] == "stage_end"}


def _failures(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / FAILURES).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
