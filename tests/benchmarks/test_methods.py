"""The table of published methods: what it reads, compares and says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from moekd.benchmarks.methods import (
    Measured,
    differences,
    markdown,
    methods_suite,
    read_methods,
    verdict,
    write_methods,
)
from moekd.benchmarks.suite import Suite
from moekd.errors import ConfigError, DataError


def measured(slug: str, gains: list[float], alone: float = 0.5) -> Measured:
    """Return a method whose student is better than what it must beat by the given shares, seed by seed."""
    seeds = range(len(gains))
    method = Measured(slug, "A title", "arXiv 2501.00001, 2025", "accuracy (test)", "kd")
    method.titles = {"student": "ours", "kd": "KD", "student_alone": "student alone"}
    method.values["student_alone"] = {seed: alone + 0.001 * seed for seed in seeds}
    method.values["kd"] = {seed: 0.6 + 0.01 * seed for seed in seeds}
    method.values["student"] = {seed: 0.6 + 0.01 * seed + gain for seed, gain in enumerate(gains)}
    method.seconds = {arm: dict.fromkeys(seeds, 0.02 if arm == "student" else 0.01) for arm in method.values}
    method.run_seconds = dict.fromkeys(seeds, 100.0)
    return method


def test_gains_are_judged_by_paired_differences() -> None:
    methods = [
        measured("better", [0.02, 0.021, 0.019, 0.02, 0.022]),
        measured("same", [0.02, -0.03, 0.01, -0.01, 0.0]),
        measured("worse", [-0.05, -0.051, -0.049, -0.052, -0.05]),
        measured("two_seeds", [0.02, 0.02]),
    ]
    found = differences(methods)
    beats = {slug: pair[0] for slug, pair in found.items()}
    assert beats["better"] is not None
    assert beats["better"].mean == pytest.approx(0.0204)
    assert [verdict(beats[m.slug]) for m in methods] == ["yes", "not beyond chance", "no: worse", "too few seeds"]
    text = markdown(methods, "moekd benchmark methods")
    row = next(line for line in text.splitlines() if line.startswith("| `better`"))
    assert "+2.04 [" in row
    assert "| yes |" in row
    assert row.endswith("| 2.00 | 100 s |")
    assert text.count("### ") == 4
    assert "KD (to beat)" in text


def test_holms_correction_is_over_all_methods() -> None:
    doubtful = [0.02, 0.005, 0.03, 0.012, 0.001]
    alone, among = differences([measured("a", doubtful)]), differences([measured(f"m{i}", doubtful) for i in range(4)])
    first, last = alone["a"][0], among["m0"][0]
    assert first is not None
    assert last is not None
    assert first.p_holm is not None
    assert last.p_holm == pytest.approx(min(1.0, 4 * first.p_holm))


def results(accuracy: float, seed: int, headline: str | None = None) -> dict[str, object]:
    """Return what a run writes, as far as the table reads it."""
    arms = {"student": accuracy, "student_alone": accuracy - 0.1, "teacher": 0.9}
    stages = [{"phase": "main", "stage": "teachers", "train_seconds": 50.0, "steps": 10}]
    stages += [{"phase": "main", "stage": "distill", "train_seconds": 3.0, "steps": 100}]
    stages += [{"phase": "student_alone", "stage": "train", "train_seconds": 1.0, "steps": 100}]
    return {
        "seed": seed,
        "seconds": 90.0 + seed,
        "headline": headline,
        "titles": {"student": "ours"},
        "teachers": ["teacher"],
        "stages": stages,
        "test": {"test": {arm: {"accuracy": value, "loss": 1.0, "rank_agreement": 0.3} for arm, value in arms.items()}},
    }


def suite_with_runs(folder: Path, headline: str | None = None) -> Suite:
    """Return a suite of one shipped config, with the results of three seeds."""
    suite = Suite("methods", ("cmkd/avmnist_image",), {"as shipped": ()})
    for seed in range(3):
        run = folder / f"avmnist_image-as-shipped-seed{seed}"
        run.mkdir(parents=True)
        (run / "results.json").write_text(json.dumps(results(0.6 + 0.01 * seed, seed, headline)))
    return suite


def test_runs_become_a_table(tmp_path: Path) -> None:
    methods = read_methods(suite_with_runs(tmp_path), tmp_path)
    assert [method.must_beat for method in methods] == ["student_alone"]
    assert methods[0].values["student"] == {0: 0.6, 1: 0.61, 2: 0.62}
    assert "teacher" not in methods[0].values, "a teacher is no arm"
    assert methods[0].seconds["student"][0] == pytest.approx(0.03), "of the last stage, for a step"
    table = write_methods(methods, tmp_path / "out", "moekd benchmark methods --seeds 3")
    assert "Made by `moekd benchmark methods --seeds 3`." in table.read_text()
    with open(tmp_path / "out" / "methods.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["role"] for row in rows} == {"method", "alone"}
    assert [row["run_seconds"] for row in rows if row["arm"] == "student"] == ["90.0", "91.0", "92.0"]
    assert "| 91 s |" in table.read_text()
    assert "| order as the teacher's (tau) |" in table.read_text()
    assert "| 30.00 [30.00, 30.00] |" in table.read_text()
    drawn = (tmp_path / "out" / "methods.svg").read_text()
    assert "avmnist_image" in drawn
    assert "student alone" in drawn


def test_a_headline_that_nobody_measured_is_named(tmp_path: Path) -> None:
    suite = suite_with_runs(tmp_path, "retrieval_r1")
    with pytest.raises(DataError, match="retrieval_r1"):
        read_methods(suite, tmp_path)
    with pytest.raises(DataError, match="no finished run of suite 'methods'"):
        read_methods(suite, tmp_path / "nothing")


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ConfigError, match="no method 'nonsense'"):
        methods_suite(["nonsense"])
    assert all(name.startswith("methods/") for name in methods_suite().configs)
