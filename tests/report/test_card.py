"""The model card."""

from __future__ import annotations

import json

import pytest
import yaml
from example_run import write_example_run
from huggingface_hub.repocard_data import model_index_to_eval_results

from moekd.errors import DataError
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
    values = yaml.safe_load(front)
    index = values.pop("model-index")
    assert values == {
        "tags": ["moekd", "knowledge-distillation"],
        "library_name": "pytorch",
        "datasets": ["avmnist"],
        "metrics": ["accuracy", "f1"],
    }
    name, scores = model_index_to_eval_results(index)
    assert name == "run"
    told = {(score.dataset_split, score.metric_type): score.metric_value for score in scores}
    assert told["test", "accuracy"] == 0.641
    assert {split for split, _ in told} == {"test", "test_unseen_style"}
    assert "# AV-MNIST, image student" in body
    assert "| test | student | student | 64.1% |" in body
    assert 'moekd.load_student("RUN")' in body
    assert "| reads | image |" in body
    assert "- image: shape \\[1, 28, 28\\]; mean 0.13" in body
    assert "## Limits" in body
    assert "torch.export.load" not in body
    assert "| multimodal | cnn |  | - | not stated | image, audio | 1,809,752 |" in body
    assert "licence of" not in card
    assert "terms of the teachers' licences" in body


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
    """S9: nor in the card of a run."""
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


def change(run, **teachers):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["teachers"] = teachers
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_teachers_have_id_revision_and_licence(tmp_path):
    run = write_example_run(tmp_path / "run")
    (tmp_path / "weights" / "dino").mkdir(parents=True)
    (tmp_path / "weights" / "dino" / "README.md").write_text("---\nlicense: mit\n---\n# DINO\n")
    clip = {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "licence": "CC-BY-4.0"}
    local = {"kind": "transformers", "model": str(tmp_path / "weights" / "dino"), "inputs": ["image"]}
    hub = {"kind": "transformers", "model": "owner/never-seen", "revision": "0" * 40, "inputs": ["caption"]}
    change(run, clip=clip | {"inputs": ["image", "caption"]}, dino=local, text=hub)
    body = model_card(run)
    assert "| clip | open_clip | ViT-B-32 | laion2b_s34b_b79k | CC-BY-4.0 | image, caption | - |" in body
    assert "| dino | transformers | dino | - | mit | image | - |" in body
    assert f"| text | transformers | owner/never-seen | {'0' * 40} | not stated | caption | - |" in body
    assert str(tmp_path) not in body


@pytest.mark.parametrize(
    ("licence", "expected"),
    [("Apache-2.0", {"license": "apache-2.0"}), ("mine", {"license": "other", "license_name": "mine"})],
)
def test_licence_of_the_student(tmp_path, licence, expected):
    run = write_example_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["student"]["licence"] = licence
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    card = model_card(run)
    values = yaml.safe_load(card.split("---\n")[1])
    assert {key: value for key, value in values.items() if key.startswith("license")} == expected
    assert f"| licence of the student | {licence} |" in card


def test_several_seeds_give_intervals(tmp_path):
    runs = [write_example_run(tmp_path / f"run{i}", seed=i, student=0.6 + 0.02 * i) for i in range(3)]
    card = model_card(runs[0], seeds=runs[1:])
    values = [json.loads((r / "results.json").read_text())["test"]["test"]["student"]["accuracy"] for r in runs]
    mean = sum(values) / 3
    half = 4.30265 * (sum((v - mean) ** 2 for v in values) / 2 / 3) ** 0.5  # t quantile of 2 degrees of freedom
    interval = f"{100 * mean:.1f}% | {100 * (mean - half):.1f}% to {100 * (mean + half):.1f}%"
    assert "## Over 3 seeds" in card
    assert f"| test | Accuracy | {interval} | 3 |" in card
    assert "They come from 3 seeds" in card
    assert "Over" not in model_card(runs[0]).split("## Results")[1].split("##")[0]


def test_seeds_of_another_recipe_are_refused(tmp_path):
    first = write_example_run(tmp_path / "a", seed=0)
    with pytest.raises(DataError, match="has the seed of another run"):
        model_card(first, seeds=[write_example_run(tmp_path / "b", seed=0)])
    with pytest.raises(DataError, match="no run of the same recipe: router differ"):
        model_card(first, seeds=[write_example_run(tmp_path / "c", seed=1, routing=False)])
    with pytest.raises(DataError, match="has no test results"):
        model_card(first, seeds=[write_example_run(tmp_path / "d", seed=1, finished=False)])


def test_scores_of_embeddings(tmp_path):
    run = write_example_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["test"]["test"]["student"] |= {"image_to_text_r1": 0.25, "mean_teacher_r2": 0.5}
    (run / "results.json").write_text(json.dumps(results))
    card = model_card(run)
    assert "| split | model | image to text R@1 | R2 of teachers |" in card
    assert "| test | student | 25.0% | 0.500 |" in card


def test_a_run_of_embeddings_alone(tmp_path):
    run = write_example_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["test"] = {"test": {"student": {"image_to_text_r1": 0.25, "n": 100}}}
    (run / "results.json").write_text(json.dumps(results))
    card = model_card(run)
    assert "| split | model | image to text R@1 |" in card
    assert "| accuracy |" not in card
    assert "metrics" not in yaml.safe_load(card.split("---\n")[1])
