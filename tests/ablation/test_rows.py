"""Rows of an ablation against the files of its runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from moekd.ablation import ablate, read_plan, read_rows
from moekd.ablation.report import ablation_report
from moekd.errors import ConfigError, DataError
from moekd.tracking import read_jsonl

from ..engine.conftest import _one_thread, _tiny_kinds  # noqa: F401
from .small import BASE, HereBackend, write_ablation

ARMS: dict[str, Any] = {
    "plain": {},
    "dense": {"router.selection": "dense"},
    "alone": {"stages.distill.objectives": ["cross_entropy"], "stages.distill.trains": ["student"]},
    "broken": {"stages.distill.optimizer": {"kind": "sgd", "lr": 1e30}, "stages.distill.epochs": 4},
    "never": {"stages.distill.accumulate": 2},
}
LAST = {**BASE["stages"][2], "ema": None}
RECIPE = {**BASE, "stages": [BASE["stages"][0], LAST], "masks": None, "evaluation": {"splits": ["test", "val"]}}


@pytest.fixture(scope="module")
def folder(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Return the folder of an ablation with an arm that failed and one that has not run."""
    place = Path(tmp_path_factory.mktemp("rows"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moekd.ablation.dispatch.LocalBackend", HereBackend)
        path = write_ablation(place, ARMS, RECIPE, baseline="plain", title="Rows", metric="loss")
        outcome = ablate(path, runs=place, quiet=True, command="moekd ablate small.yaml")
    shutil.rmtree(next(outcome.folder.glob("never-*")))
    return outcome.folder


def run_of(folder: Path, arm: str) -> Path:
    """Return the folder of an arm's run."""
    return next(folder.glob(f"{arm}-*"))


def test_a_row_for_every_arm_and_split(folder: Path) -> None:
    found = [(row["arm"], row.get("split"), row["status"]) for row in read_rows(folder)]
    assert found == [
        ("plain", "test", "done"),
        ("plain", "val", "done"),
        ("dense", "test", "done"),
        ("dense", "val", "done"),
        ("alone", "test", "done"),
        ("alone", "val", "done"),
        ("broken", None, "failed"),
        ("never", None, "missing"),
    ]
    assert {(row["setting"], row["seed"]) for row in read_rows(folder)} == {("", 0)}


def test_numbers_are_those_of_the_run(folder: Path) -> None:
    for row in read_rows(folder):
        if row["status"] != "done":
            continue
        results = json.loads((run_of(folder, row["arm"]) / "results.json").read_text())
        test = results["test"][row["split"]]
        assert {name: row[name] for name in ("accuracy", "balanced_accuracy", "weighted_f1", "loss")} == {
            name: test["student"][name] for name in ("accuracy", "balanced_accuracy", "weighted_f1", "loss")
        }
        assert row["teachers"] == {name: test[name]["accuracy"] for name in ("right", "both")}
        assert row["class_names"] == results["class_names"]


def test_costs_are_those_of_the_arms_own_stages(folder: Path) -> None:
    row = read_rows(folder)[0]
    ends = [r for r in read_jsonl(run_of(folder, "plain") / "metrics.jsonl") if r["type"] == "stage_end"]
    assert [end["stage"] for end in ends] == ["cotrain", "distill"]
    own = ends[1]
    assert row["steps"] == own["steps"] == 3
    assert row["seconds"] == own["seconds"] < sum(end["seconds"] for end in ends)
    assert row["seconds_per_step"] == own["train_seconds"] / own["steps"]
    assert row["teacher_forwards_per_step"] == own["teacher_forwards"] / own["steps"]
    assert row["peak_memory_mb"] == own["peak_memory_mb"]


def test_routing_of_arms_that_route(folder: Path) -> None:
    rows = {row["arm"]: row for row in read_rows(folder) if row.get("split") == "test"}
    for arm in ("plain", "dense"):
        assert rows[arm]["routing"]["variants"] == ["right", "both"]
        assert [list(epoch) for epoch in rows[arm]["history"]] == [["epoch", "shares", "entropy"]]
        assert sum(rows[arm]["history"][0]["shares"].values()) == pytest.approx(1.0)
    assert rows["alone"]["routing"] is None
    assert rows["alone"]["history"] == []


def test_reasons(folder: Path) -> None:
    rows = {row["arm"]: row for row in read_rows(folder)}
    assert "not finite" in rows["broken"]["reason"]
    assert rows["never"]["reason"] == "has not finished"


def test_the_report_says_who_is_missing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ablation_report(folder, tmp_path / "out")
    assert {kind: path.name for kind, path in files.items()} == {
        "csv": "small.csv",
        "md": "small.md",
        "html": "report.html",
    }
    said = capsys.readouterr().out
    assert "Loss" in said
    text = files["md"].read_text()
    assert text.startswith("# Rows\n")
    assert "`moekd ablate small.yaml`" in text
    assert "small, val" in text
    assert "not finite" in text
    assert "has not finished" in text
    with pytest.raises(ConfigError, match="no arm 'plian'; did you mean 'plain'"):
        ablation_report(folder, tmp_path / "out", "plian")


def test_folders_that_are_no_ablation(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no folder of an ablation: plan.json can't be read"):
        read_rows(tmp_path)
    for text in ("[]", '{"name": 1}', '{"jobs": [{}]}'):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(DataError, match="damaged or of another version"):
            read_plan(tmp_path)


def test_damaged_results_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (run_of(tmp_path / "copy", "plain") / "results.json").write_text('{"test": ')
    with pytest.raises(DataError, match=r"plain-.*results.json is damaged: .*delete it and call again"):
        read_rows(tmp_path / "copy")
