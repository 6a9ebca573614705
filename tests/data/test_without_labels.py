"""Runs on pictures with captions alone: no labels in training, with or without a labelled test split."""

from __future__ import annotations

import copy
import json
import math

import pytest

from moekd.check import check
from moekd.config import parse_recipe
from moekd.dry_run import dry_run
from moekd.errors import MoekdError
from moekd.recipe import Recipe
from moekd.tracking import RunFolder
from moekd.trainer import Trainer
from tests.data.tar_files import CLASSES, sample, write_tar

pytest.importorskip("open_clip")
CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tars")
    start = 0
    for name, rows in (("train", 24), ("val", 8), ("test", 9), ("test_labelled", 9)):
        samples = {f"{n}": sample(n) for n in range(start, start + rows)}
        start += rows
        for members in samples.values() if name != "test_labelled" else ():
            del members["cls"]
        write_tar(path / f"{name}.tar", samples)
    return path


def recipe(folder, **changes):
    """Two towers learn from captions; a CLIP model of open_clip is the student."""
    text = {"kind": "text", "column": "json.caption", "tokenizer": {"kind": "bytes", "context": 16, "lower": False}}
    raw = {
        "seed": 0,
        "data": {
            "kind": "webdataset",
            "path": str(folder),
            "split": {name: f"{name}.tar" for name in ("train", "val", "test")},
            "fields": {"image": {"kind": "image", "column": "png", "size": 16}, "caption": text},
            "batch_size": 8,
        },
        "student": {"kind": "open_clip", "model": CLIP, "inputs": ["image", "caption"]},
        "stages": [
            {
                "name": "pairs",
                "trains": ["student"],
                "epochs": 2,
                "objectives": [{"kind": "contrastive"}],
                "transforms": [{"kind": "image_augment", "brightness": 0.2, "views": 2}],
                "monitor": {"metric": "contrastive", "mode": "min"},
            }
        ],
    }
    return copy.deepcopy(raw) | changes


def labelled(folder):
    raw = recipe(folder)
    raw["data"] |= {"label": "cls", "classes": CLASSES, "labelled_splits": ["test_labelled"]}
    raw["data"]["split"]["test_labelled"] = "test_labelled.tar"
    raw["evaluation"] = {"splits": ["test_labelled", "test"], "zero_shot": {"templates": ["a {}"]}}
    return raw


def program(raw):
    return Recipe(parse_recipe(copy.deepcopy(raw), "test.yaml"), "test.yaml").build()


def run(built, folder):
    run_folder = RunFolder(folder, "run")
    results = Trainer(built, run_folder, quiet=True).fit()
    return results, [json.loads(line) for line in run_folder.metrics.read_text().splitlines()]


def test_a_run_without_any_labels(folder, tmp_path):
    built = program(recipe(folder))
    assert (built.data.num_classes, built.data.class_names) == (0, [])
    results, records = run(built, tmp_path)
    validation = [record["metrics"] for record in records if record["type"] == "validation"]
    assert len(validation) == 2
    assert all(math.isfinite(metrics["contrastive"]) for metrics in validation)
    assert "retrieval_r1" in results["test"]["test"]["student"]
    assert "accuracy" not in results["test"]["test"]["student"]
    transform = built.phases[0].stages[0].settings.transforms[0]
    assert transform.recipes == {"image": {"mean": None, "std": None}}


def test_a_labelled_test_split(folder, tmp_path):
    built = program(labelled(folder))
    assert built.data.class_names == CLASSES
    results, _ = run(built, tmp_path)
    assert 0 <= results["test"]["test_labelled"]["student"]["zero_shot_accuracy"] <= 1
    assert "zero_shot_accuracy" not in results["test"]["test"]["student"]


def test_a_classifier_learns_from_zero_shot_teachers(folder, tmp_path):
    raw = labelled(folder)
    raw["teachers"] = {"names": {"kind": "open_clip", "model": CLIP, "zero_shot": {}, "inputs": ["image"]}}
    raw["student"] = {"kind": "small_cnn", "inputs": ["image"]}
    raw["stages"][0] |= {"objectives": [{"kind": "kd"}], "monitor": {"metric": "kd", "mode": "min"}}
    report = check(Recipe(parse_recipe(copy.deepcopy(raw), "test.yaml"), "test.yaml"))
    assert [model["accuracy"] for model in report.models] == [None, None], "validation rows have no labels"
    results, records = run(program(raw), tmp_path)
    student = results["test"]["test_labelled"]["student"]
    assert {"accuracy", "loss"} <= student.keys()
    assert "accuracy" not in results["test"]["test"]["student"]
    assert all(math.isfinite(r["metrics"]["kd"]) for r in records if r["type"] == "validation")


def test_what_needs_labels_is_refused_before_the_first_step(folder):
    raw = labelled(folder)
    raw["student"] = {"kind": "small_cnn", "inputs": ["image"]}
    raw["stages"][0]["objectives"] = [{"kind": "cross_entropy"}]
    del raw["stages"][0]["monitor"]
    with pytest.raises(MoekdError, match=r"objective 'CrossEntropy'.*needs labels"):
        dry_run(program(raw))
    raw["data"]["labels"] = 10
    with pytest.raises(MoekdError, match="has no labels, so 'labels: 10' can't be applied"):
        program(raw)
    raw = recipe(folder)
    raw["stages"][0]["monitor"] = {"metric": "accuracy", "mode": "max"}
    with pytest.raises(MoekdError, match="'accuracy' is not measured"):
        dry_run(program(raw))
