"""What the runs of an ablation found, as plain rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import probe_writable, write_json, write_text
from ..errors import DataError
from ..tracking import read_jsonl
from .plan import Plan
from .run import finished
from .spec import Ablation

PLAN, FAILURES = "plan.json", "failures"
_METRICS = ("accuracy", "balanced_accuracy", "weighted_f1", "loss")


def write_plan(ablation: Ablation, plan: Plan, command: str, folder: Path) -> None:
    """Write `plan.json`, from which the report is made, also on another day.

    Raises:
        DataError: the folder can't be written, or is that of a single run.
    """
    stages = {job["key"]: [stage["name"] for stage in job["config"]["stages"]] for job in plan.jobs} | {None: []}
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
        "jobs": [_planned(job, stages) for job in plan.jobs],
    }
    if (folder / "metrics.jsonl").exists():
        raise DataError(f"{folder} is the folder of a single run; choose another --runs or name of the ablation's file")
    probe_writable(folder)
    write_json(folder / PLAN, about)


def _planned(job: Mapping[str, Any], stages: Mapping[str | None, list[str]]) -> dict[str, Any]:
    """Return a job without its config, which lies in its run's folder; with the stages that it takes over."""
    place = {key: job[key] for key in ("key", "start", "setting", "arm", "title", "seed")}
    return place | {"shared_stages": stages[job["start"]]}


def read_plan(folder: Path) -> dict[str, Any]:
    """Return what `write_plan` wrote.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        about = json.loads((folder / PLAN).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no folder of an ablation: {PLAN} can't be read: {error}") from error
    jobs = about.get("jobs") if isinstance(about, dict) else None
    if not isinstance(jobs, list) or not all("shared_stages" in job for job in jobs):
        raise DataError(
            f"{folder / PLAN} is damaged or of another version; call the ablation again, finished runs stay"
        )
    return about


def note_failure(key: str, reason: str, folder: Path) -> None:
    """Keep why a run failed; each run has a file of its own, since several machines may work on one ablation."""
    (folder / FAILURES).mkdir(exist_ok=True)
    write_text(folder / FAILURES / f"{key}.txt", reason + "\n")


def forget_failures(jobs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Forget why runs failed, before they are tried again."""
    for job in jobs:
        (folder / FAILURES / f"{job['key']}.txt").unlink(missing_ok=True)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a row for every (setting, arm, seed, test split); runs without results have one row without numbers.

    Raises:
        DataError: the folder is no ablation's.
    """
    about = read_plan(folder)
    jobs = {job["key"]: job for job in about["jobs"]}
    rows: list[dict[str, Any]] = []
    for job in about["jobs"]:
        if job["arm"] is None:
            continue
        place = {key: job[key] for key in ("setting", "arm", "title", "seed")} | {"key": job["key"]}
        if finished(job, folder):
            rows += _done(place, job, folder)
        elif (reason := _why(job, jobs, folder)) is not None:
            rows.append(place | {"status": "failed", "reason": reason})
        else:
            rows.append(place | {"status": "missing", "reason": "has not finished"})
    for setting, arm, reason in about["inapplicable"]:
        rows.append(
            {"setting": setting, "arm": arm, "title": arm, "seed": None, "status": "inapplicable", "reason": reason}
        )
    return rows


def _done(place: dict[str, Any], job: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    run, shared = folder / job["key"], set(job["shared_stages"])
    try:
        results = json.loads((run / "results.json").read_bytes())
    except ValueError as error:
        raise DataError(f"{run / 'results.json'} is damaged: {error}; delete it and call again") from error
    records = [record for record in read_jsonl(run / "metrics.jsonl") if record.get("phase") == "main"]
    ends = [record for record in records if record["type"] == "stage_end" and record["stage"] not in shared]
    steps = sum(end["steps"] for end in ends)
    cost = {
        "seconds": sum(end["seconds"] for end in ends),
        "steps": steps,
        "seconds_per_step": sum(end["train_seconds"] for end in ends) / steps if steps else None,
        "teacher_forwards_per_step": sum(end["teacher_forwards"] for end in ends) / steps if steps else None,
        "peak_memory_mb": max((end["peak_memory_mb"] for end in ends), default=None),
        "peak_memory_of": "part" if all(end.get("peak_memory_of") == "part" for end in ends) else "process",
    }
    common = {
        "status": "done",
        "reason": "",
        "routing": results["routing"] if any(record["type"] == "routing" for record in records) else None,
        "class_names": results["class_names"],
        "history": _history(records, shared),
    }
    rows = []
    for split, models in results["test"].items():
        numbers = {k: v for k, v in models["student"].items() if isinstance(v, int | float) and k != "n"}
        metrics = dict.fromkeys(_METRICS) | numbers
        teachers = {n: models[n]["accuracy"] for n in results["teachers"] if "accuracy" in models.get(n, {})}
        rows.append(place | common | cost | metrics | {"split": split, "teachers": teachers})
    return rows


def _history(records: Sequence[Mapping[str, Any]], shared: set[str]) -> list[dict[str, Any]]:
    """Return the routing of the arm's last routed stage by epoch."""
    routed = [record for record in records if record["type"] == "routing" and record["stage"] not in shared]
    last = routed[-1]["stage"] if routed else None
    return [{key: r[key] for key in ("epoch", "shares", "entropy")} for r in routed if r["stage"] == last]


def _why(job: Mapping[str, Any], jobs: Mapping[str, Mapping[str, Any]], folder: Path) -> str | None:
    """Return why a run failed; where the shared stages did, their reason."""
    reason, start = _failure(job["key"], folder), jobs.get(job["start"])
    cause = _why(start, jobs, folder) if reason is not None and start is not None else None
    return reason if cause is None or start is None else f"shared stages {start['title']}: {cause}"


def _failure(key: str, folder: Path) -> str | None:
    try:
        return (folder / FAILURES / f"{key}.txt").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
