"""Embeddings in a whole run: a student without a classifier, validation, results, examples, report, card, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import moekd
from moekd.errors import ConfigError
from moekd.evaluate_run import evaluate_run
from moekd.recipe import Recipe
from moekd.report import compare_report, write_report

TEXT = {"tokenizer": "bytes", "context": 24, "width": 16, "layers": 1, "heads": 2}
STUDENT = {"kind": "two_tower", "inputs": ["image", "caption"], "text": TEXT, "width": 8}
CONFIG: dict[str, Any] = {
    "title": "Tiny towers",
    "data": {"kind": "emoji", "target": "group", "captions": "name", "max_train": 64, "batch_size": 32},
    "student": STUDENT | {"tower": {"kind": "cnn_encoder", "channels": [4, 8]}},
    "teachers": {
        "pair": {
            "kind": "two_tower",
            "inputs": ["image", "text"],
            "tower": {"kind": "cnn_encoder", "channels": [8, 8]},
            "text": "vectors",
            "width": 12,
        },
    },
    "stages": [
        {
            "name": "distill",
            "trains": ["student", "objectives"],
            "epochs": 2,
            "monitor": {"metric": "retrieval_r1", "mode": "max"},
            "objectives": [{"kind": "contrastive", "scale": "model", "same": "concept"}, {"kind": "contrastive_kd"}],
        }
    ],
    "evaluation": {
        "splits": ["test", "test_unseen_both"],
        "zero_shot": {"templates": ["{}"]},
        "probe": {"knn_k": 3, "train_rows": 48},
        "max_rows": 80,
    },
    "trainer": {"trackers": [], "keep": 1, "device": "cpu"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> moekd.Run:
    folder = tmp_path_factory.mktemp("towers")
    (folder / "towers.yaml").write_text(yaml.safe_dump(CONFIG))
    return moekd.distill(folder / "towers.yaml", runs=folder / "runs", quiet=True)


def test_a_student_without_a_classifier_is_validated_and_kept_by_retrieval(run: moekd.Run):
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    validations = [record["metrics"] for record in records if record["type"] == "validation"]
    assert len(validations) == 2
    assert {"retrieval_r1", "image_to_text_r5", "text_to_image_median_rank", "zero_shot_accuracy"} <= set(
        validations[0]
    )
    assert "accuracy" not in validations[0]
    best = max(range(2), key=lambda epoch: validations[epoch]["retrieval_r1"])
    assert [record["best_epoch"] for record in records if record["type"] == "stage_end"] == [best]


def test_the_results_hold_parts_and_headlines(run: moekd.Run):
    results = json.loads((run.path / "results.json").read_text())
    for split in ("test", "test_unseen_both"):
        part, flat = (results[key][split]["student"] for key in ("vision_language", "test"))
        assert set(part) == {"retrieval", "zero_shot", "knn", "linear_probe", "teachers"}
        assert flat["n"] == part["retrieval"]["n_image"] <= 80
        assert part["retrieval"]["n_text"] <= part["retrieval"]["n_image"], "styles share captions"
        assert flat["knn_accuracy"] == part["knn"]["accuracy"]
        assert part["knn"]["train_rows"] == 48
        assert set(part["teachers"]) == {"pair/image", "pair/text"}
        assert flat["worst_teacher_r2"] == min(row["r2"] for row in part["teachers"].values()) <= 1
        assert set(results["vision_language"][split]["pair"]) == {"retrieval", "knn", "linear_probe"}, "no text tower"
    assert results["parameters"]["pair"] > 0


def test_evaluate_finds_the_same_numbers(run: moekd.Run):
    again = evaluate_run(run.path)
    for split, metrics in again.items():
        known = run.results["test"][split]["student"]
        assert metrics == pytest.approx({key: known[key] for key in metrics}, abs=1e-6)
        assert {"retrieval_r1", "zero_shot_accuracy", "knn_accuracy"} <= set(metrics)


def test_the_pages_and_the_card_tell_them(run: moekd.Run, tmp_path: Path):
    page = (run.path / "report.html").read_text()
    for part in ("embeddings", "shift", "examples", "confusions"):
        assert f'<section id="{part}">' in page
    examples = json.loads((run.path / "examples.json").read_text())
    assert set(examples) == {"split", "rows", "map", "retrieval", "confusions", "pictures"}
    answers = examples["retrieval"]["text_to_image"][0]["found"]
    assert {answer["picture"] for answer in answers} <= set(examples["pictures"])
    assert "R@1, both ways" in page
    assert "R@1, both ways" in (run.path / "student" / "README.md").read_text()
    (run.path / "examples.json").rename(tmp_path / "examples.json")
    try:
        assert '<section id="examples">' not in write_report(run.path).read_text()
    finally:
        (tmp_path / "examples.json").rename(run.path / "examples.json")
    compared = compare_report([run.path], tmp_path / "compare.html").read_text()
    assert "R@1, both ways, mean" in compared


def changed(**evaluation: Any) -> Recipe:
    from moekd.config import parse_recipe

    return Recipe(parse_recipe(CONFIG | {"evaluation": CONFIG["evaluation"] | evaluation}, "towers"), "towers")


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"retrieval": {"same": "image"}}, "evaluation.retrieval.same: 'image' is no field of integers.*concept"),
        ({"zero_shot": {"names": ["one"]}}, "evaluation.zero_shot: zero_shot.names: expected 9 names"),
        ({"zero_shot": {"templates": ["a photo"]}}, "evaluation.zero_shot: prompt template 'a photo' has no place"),
    ],
)
def test_wrong_settings_are_config_errors(evaluation: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        changed(**evaluation).build()


def test_a_metric_that_is_switched_off_can_not_be_monitored():
    from moekd.dry_run import dry_run

    with pytest.raises(ConfigError, match=r"monitor\.metric: 'retrieval_r1' is not measured"):
        dry_run(changed(embeddings="off").build())
