"""The cross-modal benchmark from the command line: tuning, runs, resumption, tables, published numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moekd.benchmarks.cmkd import Request, choose, validation_of
from moekd.benchmarks.cmkd_report import difference_of, place_of, ranking_of, write_cmkd
from moekd.benchmarks.cmkd_results import read_published
from moekd.benchmarks.cmkd_suite import load_suite
from moekd.cli.main import app
from moekd.errors import DataError

SUITE = """
tuning: {seed: 1000, weights: [0.3, 1]}
data:
  names:
    title: names
    epochs: {teachers: 1, student: 3}
    config:
      data: {kind: emoji, target: group, max_train: 60, batch_size: 30}
      student: {kind: mlp, inputs: [text], in_features: 384, hidden: [8], taps: [fc1]}
      teachers:
        multimodal: {kind: mlp, inputs: [text], in_features: 384, hidden: [16], taps: [fc1]}
        crossmodal: {kind: mlp, inputs: [text], in_features: 384, hidden: [12], taps: [fc1]}
"""
METHODS = ["kd", "C2KD"]
#: A dozen short runs in two processes; a busy machine takes its time.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the benchmark ran for one seed."""
    folder = tmp_path_factory.mktemp("cmkd")
    (folder / "suite.yaml").write_text(SUITE)
    result = call(folder)
    assert result.exit_code == 0, result.output
    return folder


def call(folder: Path, *further: str):
    words = ["benchmark", "cmkd", "--file", str(folder / "suite.yaml"), "--data", "names", "--seeds", "1", "--quiet"]
    words += [word for name in METHODS for word in ("--methods", name)]
    words += ["--runs", str(folder / "runs"), "--output", str(folder / "out"), *further]
    return CliRunner().invoke(app, words)


def request(folder: Path) -> Request:
    return Request(load_suite(folder / "suite.yaml"), ["names"], METHODS, 1)


def test_tables_and_page(finished: Path) -> None:
    with open(finished / "out" / "cmkd.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["title"] for row in rows} == {
        *("student alone", "KD, best single teacher", "KD, averaged", "KD, routed", "C2KD")
    }
    assert {row["status"] for row in rows} == {"done"}
    assert {row["seed"] for row in rows} == {"0"}
    assert len(rows) == 5
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 1
        assert float(row["seconds"]) > 0
        assert int(row["trained_parameters"]) >= int(row["student_parameters"])
    c2kd = next(int(row["trained_parameters"]) for row in rows if row["title"] == "C2KD")
    kd = next(int(row["trained_parameters"]) for row in rows if row["title"] == "KD, averaged")
    assert c2kd > kd, "proxies and a teacher are trained"
    text = (finished / "out" / "cmkd.md").read_text()
    assert "moekd benchmark cmkd" in text
    assert "mean ranks" in text
    page = (finished / "out" / "cmkd.html").read_text()
    assert "data:image/png" in page
    assert "KD, best single teacher" in page


def test_choices_are_the_best_on_validation_rows(finished: Path) -> None:
    asked = request(finished)
    cell = asked.suite.data["names"]
    measured = validation_of(finished / "runs/cmkd/names-tuning", "accuracy")
    assert len(measured) == 6, "KD: two teachers and two weights; C2KD: two weights"
    found = choose(asked, "names", cell, finished / "runs/cmkd")
    kept = json.loads((finished / "runs/cmkd/names/choices.json").read_text())
    for title in ("KD, best single teacher", "C2KD"):
        mine = {arm: value for arm, value in measured.items() if arm.startswith(title)}
        assert measured[f"{title}, {found[title].label}"] == max(mine.values())
        assert kept[title] == {"weight": found[title].weight, "teacher": found[title].teacher}
    assert found["KD, routed"].weight == found["KD, best single teacher"].weight


def test_a_second_call_runs_nothing(finished: Path) -> None:
    results = sorted((finished / "runs").rglob("results.json"))
    before = [path.stat().st_mtime_ns for path in results]
    result = call(finished)
    assert result.exit_code == 0
    assert [path.stat().st_mtime_ns for path in results] == before
    listed = call(finished, "--dry-run")
    assert "cell names-tuning, methods 6" in listed.output
    assert "cell names, methods 5" in listed.output


def test_published_numbers_stand_beside_ours(finished: Path) -> None:
    file = finished / "published.csv"
    file.write_text("cell,method,form,value,sd,source\nnames,kd,averaged,0.5,0.01,a paper\nnames,C2KD,,0.25,,\n")
    result = call(finished, "--summary-only", "--against", str(file))
    assert result.exit_code == 0, result.output
    text = (finished / "out" / "cmkd.md").read_text()
    assert "a paper" in text
    assert "50.00" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cell,method\nnames,kd\n", "lacks the columns value"),
        ("cell,method,value\nnames,kdd,0.5\n", "line 2: no method 'kdd'; did you mean 'kd'"),
        ("cell,method,value\nother,kd,0.5\n", "line 2: no cell 'other'"),
        ("cell,method,value\nnames,kd,81.3\n", "write 0.813 for 81.3 %"),
        ("cell,method,value\nnames,kd,much\n", "value 'much' is no number"),
    ],
)
def test_mistakes_in_published_numbers_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_published(tmp_path / "p.csv", request(tmp_path))


def test_the_place_is_said_with_paired_intervals() -> None:
    cells = {
        "a": {
            "MST-Distill": {0: 0.8, 1: 0.82, 2: 0.81},
            "KD": {0: 0.7, 1: 0.72, 2: 0.73},
            "student alone": {0: 0.6, 1: 0.6, 2: 0.6},
        }
    }
    ranking, what = ranking_of(cells)
    assert ranking is not None
    assert ranking.methods == ("MST-Distill", "KD", "student alone")
    assert "seeds" in what
    sentences = place_of(cells, ranking)
    assert "place 1 of 3" in sentences[0]
    assert "(KD): +9.33" in sentences[1]
    assert "student alone: +21.00" in sentences[2]
    found = difference_of(cells, "KD", "student alone")
    assert found is not None
    assert found.n == 3


def test_methods_that_are_not_complete_are_not_ranked() -> None:
    cells = {"a": {"x": {0: 0.5}, "y": {0: 0.6}}, "b": {"x": {0: 0.5}, "y": {0: 0.4}, "z": {0: 0.9}}}
    ranking, _ = ranking_of(cells)
    assert ranking is not None
    assert set(ranking.methods) == {"x", "y"}


def test_missing_runs_are_said(finished: Path, tmp_path: Path) -> None:
    rows = [
        {"cell": "names", "method": "kd", "form": "alone", "title": "KD, best single teacher", "seed": 0}
        | {"status": "failed", "reason": "out of memory", "weight": 1.0, "teacher": ""},
    ]
    files = write_cmkd(rows, request(finished), tmp_path, "moekd benchmark cmkd")
    assert "failed: names: KD, best single teacher (out of memory)" in files["md"].read_text()
