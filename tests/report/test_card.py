"""The model card."""

from __future__ import annotations

import json

import yaml
from example_run import write_example_run

from moekd.report import model_card
from moekd.report.card import escape


def test_card_has_front_matter_results_and_usage(tmp_path):
    run = write_example_run(tmp_path / "run")
    (run / "student").mkdir()
    (run / "student" / "config.json").write_text(
        json.dumps({"inputs": ["image"], "fields": {"image": {"shape": [1, 28, 28], "mean": 0.13}}})
    )
    card = model_card(run)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "tags": ["moekd", "knowledge-distillation"],
        "library_name": "pytorch",
        "datasets": ["avmnist"],
        "metrics": ["accuracy", "f1"],
    }
    assert "# AV-MNIST, image student" in body
    assert "| test | student | student | 64.1% |" in body
    assert 'moekd.load_student("RUN")' in body
    assert "| reads | image |" in body
    assert "- image: shape \\[1, 28, 28\\]; mean 0.13" in body
    assert "## Limits" in body
    assert "torch.export.load" not in body
    assert "licence" not in card


def test_program_and_licence_are_named_only_if_there(tmp_path):
    run = write_example_run(tmp_path / "run")
    (run / "student").mkdir()
    (run / "student" / "student.pt2").write_bytes(b"")
    results = json.loads((run / "results.json").read_text()) | {"dataset_licence": "CC-BY-4.0"}
    (run / "results.json").write_text(json.dumps(results))
    card = model_card(run)
    assert 'torch.export.load("RUN/student/student.pt2")' in card
    assert "| licence of the data | CC-BY-4.0 |" in card
    assert "## Use" not in model_card(run, use=False)


def test_unfinished_run_has_a_card(tmp_path):
    assert "no test results yet" in model_card(write_example_run(tmp_path / "run", finished=False))


def test_text_can_not_form_markup(tmp_path):
    title = "x\n# [a](http://evil.example) <img src=x> www.evil.example | me@evil.example `code` **b** ---"
    run = write_example_run(tmp_path / "run", title=title, classes=["[b](http://x.y)", "<i>"])
    body = model_card(run).split("---\n", 2)[2]
    for mark in ("://", "www.", "@e", "<img", "<i>", "[a]", "[b]", "**"):
        assert mark not in body.replace("\\*\\*", ""), mark
    heading = next(line for line in body.splitlines() if line.startswith("# "))
    assert heading.startswith("# x # \\[a\\](http:<!-- -->//evil.example) &lt;img")
    assert heading.count("\\|") == 1


def test_escape_keeps_plain_names_as_they_are():
    assert escape("kd_multimodal (62.9%), top-1: +1.2") == "kd_multimodal (62.9%), top-1: +1.2"
    assert escape("_a_ b*c\\d") == "\\_a\\_ b\\*c\\\\d"
