"""Runs through shared stages against runs from the beginning, to the bit; runs that stop and go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moekd.ablation import Plan, make_plan
from moekd.ablation.run import finished, run_job
from moekd.checkpoint import find_latest, load_checkpoint
from moekd.errors import NonFiniteError
from moekd.tracking import read_jsonl

from ..engine.conftest import _one_thread, _tiny_kinds  # noqa: F401
from ..engine.tiny import PowerCutError, cut_after, same_weights, train
from .small import QUICK, job_named, make_ablation, results_of
from .test_plan import FAMILY, warmed

TIMES = ("seconds", "train_seconds", "peak_memory_mb")


def weights(folder: Path) -> dict[str, Any]:
    """Return all weights of a run's last checkpoint."""
    path, skipped = find_latest(folder / "checkpoints")
    assert path is not None
    assert not skipped
    models = load_checkpoint(path)[0]["models"]
    return {
        f"{kind}/{name}/{key}": value
        for kind in ("students", "routers", "teachers")
        for name, state in models[kind].items()
        for key, value in state.items()
    } | {f"masks/{key}": value for key, value in models["masks"].items()}


def records(folder: Path) -> list[dict[str, Any]]:
    """Return all records of a run without its times."""
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_jsonl(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def shared(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:  # noqa: F811
    """Return a plan with three levels of shared stages, and the folder in which all of it has run."""
    folder = Path(tmp_path_factory.mktemp("shared"))
    plan = make_plan(make_ablation(folder, FAMILY, warmed()))
    assert sum(job["arm"] is None for job in plan.jobs) == 3
    for job in plan.jobs:
        run_job(job, folder / "runs")
    return plan, folder / "runs"


@pytest.mark.parametrize("arm", FAMILY)
def test_an_arm_is_to_the_bit_a_run_from_the_beginning(arm: str, shared: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = shared
    job = job_named(plan, arm)
    assert (job["start"] is None) == (arm == "other student")
    alone = train(job["config"], tmp_path, "alone")
    assert results_of(folder, job["key"]) == results_of(tmp_path, alone.run.name)
    assert same_weights(weights(folder / job["key"]), weights(alone.run.path)) == []
    assert records(folder / job["key"]) == records(alone.run.path)


def test_a_finished_run_keeps_its_last_checkpoint_only(shared: tuple[Plan, Path]) -> None:
    plan, folder = shared
    for job in plan.jobs:
        assert finished(job, folder)
        kept = [path for path in (folder / job["key"] / "checkpoints").iterdir() if path.is_dir()]
        assert len(kept) == 1
        state, meta = load_checkpoint(kept[0])
        assert state["stage"] == {}
        assert meta["run"]["stages_done"] == len(job["config"]["stages"])


def test_logits_of_the_same_teachers_are_computed_once(shared: tuple[Plan, Path]) -> None:
    plan, folder = shared
    assert job_named(plan, "plain")["start"] == job_named(plan, "slow")["start"]
    before = {path: path.stat().st_mtime_ns for path in (folder / "cache").iterdir()}
    job = job_named(plan, "slow")
    run_job({**job, "key": "again"}, folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "cache").iterdir()} == before
    assert results_of(folder, "again") == results_of(folder, job["key"])


def test_a_run_goes_on_where_it_stopped(shared: tuple[Plan, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plan, folder = shared
    job = job_named(plan, "slow")
    first = {**job, "key": "cut", "title": "before", "config": {**job["config"], "title": "before"}}
    with monkeypatch.context() as patch:
        cut_after(patch, 2)  # in the first stage of its own, whose checkpoints come with the epochs
        with pytest.raises(PowerCutError):
            run_job(first, folder)
    assert not finished(first, folder)
    assert (folder / "cut" / "metrics.jsonl").stat().st_size > 0
    run_job({**job, "key": "cut"}, folder)  # has got another title since
    assert results_of(folder, "cut") == results_of(folder, job["key"])
    assert records(folder / "cut") == records(folder / job["key"])


def test_a_stage_that_stopped_goes_on_with_another_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {**QUICK, "stages": [{**QUICK["stages"][0], "steps": None, "epochs": 3}]}
    job = make_plan(make_ablation(tmp_path, {"one": {}}, recipe)).jobs[0]
    with monkeypatch.context() as patch:
        cut_after(patch, 7)
        with pytest.raises(PowerCutError):
            run_job(job, tmp_path)
    assert find_latest(tmp_path / job["key"] / "checkpoints")[0] is not None
    renamed = {**job, "title": "new", "config": {**job["config"], "title": "new", "paper": {"title": "A paper"}}}
    run_job(renamed, tmp_path)
    run_job({**job, "key": "whole"}, tmp_path)
    assert results_of(tmp_path, job["key"])["test"] == results_of(tmp_path, "whole")["test"]
    assert json.loads((tmp_path / job["key"] / "results.json").read_text())["title"] == "new"


def test_stages_that_others_start_from_need_a_checkpoint(shared: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = shared
    job = next(job for job in plan.jobs if job["arm"] is None)
    run = tmp_path / job["key"]
    (run / "checkpoints").mkdir(parents=True)
    (run / "results.json").write_text("{}")
    assert not finished(job, tmp_path)
    assert finished({**job, "arm": "one"}, tmp_path)
    assert finished(job, folder)


def test_a_run_that_fails_has_no_results(tmp_path: Path) -> None:
    stage = {**QUICK["stages"][0], "steps": 5, "optimizer": {"kind": "sgd", "lr": 1e30}}
    job = make_plan(make_ablation(tmp_path, {"one": {}}, {**QUICK, "stages": [stage]})).jobs[0]
    with pytest.raises(NonFiniteError):
        run_job(job, tmp_path)
    assert not finished(job, tmp_path)
