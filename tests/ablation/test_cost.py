"""What an ablation is expected to cost."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from moekd.ablation import make_plan
from moekd.ablation.cost import expected_seconds, print_plan
from moekd.ablation.run import run_job
from moekd.routers import example_routers

from ..engine.conftest import _one_thread, _tiny_kinds  # noqa: F401
from .small import BASE, QUICK, ROUTED_ONLY, make_ablation


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every timed piece of work take one second."""

    def one_second(work) -> float:
        work()
        return 1.0

    monkeypatch.setattr("moekd.ablation.cost._seconds", one_second)


def test_steps_and_validations_are_counted(tmp_path: Path, clock: None) -> None:
    stage = {"name": "learn", "trains": ["student"], "objectives": ["cross_entropy"]}

    def seconds(**options) -> float:
        plan = make_plan(make_ablation(tmp_path, {"one": {}}, {**QUICK, "stages": [stage | options]}))
        return expected_seconds(plan.jobs[0], ["learn"])

    # 40 rows in batches of 16: 3 steps an epoch, and a validation.
    assert seconds(epochs=1) == 3 + 1
    assert seconds(epochs=5) == 5 * (3 + 1)
    assert seconds(steps=7) == 7 + 3
    assert seconds(steps=2, accumulate=3) == 6 + 2


def test_only_the_asked_for_stages_count(tmp_path: Path, clock: None) -> None:
    job = make_plan(make_ablation(tmp_path, {"one": {}}, BASE)).jobs[0]
    whole = expected_seconds(job, ["cotrain", "specialise", "distill"])
    assert whole == sum(expected_seconds(job, [name]) for name in ("cotrain", "specialise", "distill")) == 3 * (3 + 1)


def test_what_cannot_be_told_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unheard:
        name = "learn"

    job = make_plan(make_ablation(tmp_path, {"one": {}}, QUICK)).jobs[0]
    assert expected_seconds(job, ["learn"]) > 0
    monkeypatch.setattr("moekd.ablation.cost.TrainStage", Unheard)
    assert math.isnan(expected_seconds(job, ["learn"]))


def test_the_plan_in_print(
    tmp_path: Path, clock: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipe = {**BASE, "stages": [BASE["stages"][0], BASE["stages"][2]], "masks": None}
    arms = {"plain": {}, "dense": {"router.selection": "dense"}}
    ablation = make_ablation(tmp_path, arms, recipe, seeds=3, settings={"few": {"data.labels": 30}})
    plan = make_plan(ablation)
    folder = tmp_path / "small"
    run_job(next(job for job in plan.jobs if job["arm"] is None), folder)
    before = sorted(tmp_path.rglob("*"))
    print_plan(ablation, folder, jobs=2)
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    assert "2 arms, 3 seeds" in said
    # A seed: 4 s of shared stages and 4 s an arm.
    assert f"9 runs (1 finished in {folder}), all of them about 36 s of one process, 18 s with --jobs 2" in said
    assert "without shared stages about 48 s" in said
    for word in ("few", "plain", "dense", "cotrain of 2 arms", "distill"):
        assert word in said


def test_arms_that_do_not_apply_are_named(
    tmp_path: Path, clock: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    family = ["modality", "uniform"]
    without = [name for name in example_routers(2) if name not in family]
    ablation = make_ablation(tmp_path, {}, ROUTED_ONLY, every="routers", without=without)
    print_plan(ablation, tmp_path / "runs")
    said = capsys.readouterr().out
    assert "not applicable: modality: " in said
    assert "1 runs (0 finished in" in said
    assert not (tmp_path / "runs").exists()


def test_spans() -> None:
    from moekd.ablation.cost import _span

    assert [_span(s) for s in (0.4, 119, 120, 7199, 7200, math.nan)] == [
        "0 s",
        "119 s",
        "2 min",
        "120 min",
        "2.0 h",
        "an unknown time",
    ]
    assert all(a != b for a, b in itertools.pairwise([_span(s) for s in (1, 1000, 100000)]))
