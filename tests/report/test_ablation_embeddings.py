"""An ablation that is compared by a metric of embeddings: table, CSV file and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from moekd.ablation.spec import Metric
from moekd.report import read_ablation_csv, write_ablation_report
from moekd.report.measures import EMBEDDING

ABOUT = {"name": "small", "title": "Small", "baseline": "alone", "metric": "retrieval_r1", "seeds": [0, 1, 2]}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "setting": "",
            "arm": arm,
            "title": arm,
            "seed": seed,
            "split": "test",
            "status": "done",
            "reason": "",
            "accuracy": None,
            "balanced_accuracy": None,
            "weighted_f1": None,
            "loss": None,
            "retrieval_r1": base + 0.01 * seed,
            "zero_shot_accuracy": base / 2,
            "routing": None,
            "teachers": {},
        }
        for arm, base in (("alone", 0.2), ("taught", 0.35))
        for seed in range(3)
    ]


def test_every_measure_of_embeddings_can_be_the_metric():
    assert set(EMBEDDING) <= set(get_args(Metric))


def test_the_report_is_about_retrieval_and_comes_back_from_its_csv(tmp_path: Path):
    files = write_ablation_report(rows(), ABOUT, tmp_path / "first")
    header = files["csv"].read_text().splitlines()[0].split(",")
    assert {"retrieval_r1", "zero_shot_accuracy"} <= set(header)
    assert "knn_accuracy" not in header, "nobody measured it"
    page = files["html"].read_text()
    assert "R@1, both ways" in page
    assert "36.0" in page
    assert "Zero-shot accuracy" in page
    read = read_ablation_csv(files["csv"])
    assert [row["retrieval_r1"] for row in read] == pytest.approx([row["retrieval_r1"] for row in rows()])
    again = write_ablation_report(read, ABOUT, tmp_path / "second")
    assert again["csv"].read_text() == files["csv"].read_text()


def test_a_run_that_did_not_measure_the_metric_is_left_out(tmp_path: Path):
    some = rows()
    del some[-1]["retrieval_r1"]
    page = write_ablation_report(some, ABOUT, tmp_path)["html"].read_text()
    assert "retrieval_r1 was not measured on test" in page
