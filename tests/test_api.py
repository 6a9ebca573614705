"""The names that others rely on, and what `distill` and `load_student` give."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moekd
import moekd.objectives
import moekd.routers
import moekd.teachers
from moekd.api import Run
from moekd.errors import ConfigError
from moekd.evaluate_run import evaluate_run
from moekd.inference import predict
from moekd.model import Model
from moekd.recipe import Recipe

from .engine.conftest import _tiny_kinds  # noqa: F401
from .engine.tiny import full, recipe_of, simple

NAMES = {
    "moekd": ["Signals", "Model", "Step", "Recipe", "distill", "load_student"],
    "moekd.teachers": ["Teacher", "TeacherPool", "FeatureAttentionMask"],
    "moekd.routers": [
        "Router",
        "Routing",
        "InstanceGate",
        "DenseInstanceGate",
        "TopK",
        "kl_to_uniform",
        "coefficient_of_variation",
    ],
    "moekd.objectives": ["kd_kl"],
}


@pytest.mark.parametrize("module", NAMES)
def test_public_names(module: str) -> None:
    for name in NAMES[module]:
        value = getattr(sys.modules[module], name)
        assert value.__doc__
        assert name in dir(sys.modules[module])


def names_and_defaults(function: object) -> list[str]:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]


def test_promised_signatures() -> None:
    assert names_and_defaults(moekd.objectives.kd_kl) == ["student_logits", "teacher_logits", "temperature=4.0"]
    mask = moekd.teachers.FeatureAttentionMask
    assert names_and_defaults(mask) == ["dim", "hidden_factor=2", "heads=3", "spatial=False"]
    assert names_and_defaults(moekd.Model)[:4] == ["network", "inputs", "taps=()", "heads=None"]
    assert names_and_defaults(moekd.load_student) == ["run"]
    assert names_and_defaults(moekd.distill)[:3] == ["config", "overrides=()", "name=None"]
    names = {name.split(".")[0] for name in dict(mask(12).named_parameters())}
    assert names == {"embed", "mha", "fc"}
    spatial = {".".join(name.split(".")[:3]) for name in mask(12, spatial=True).state_dict() if "spatial" in name}
    assert spatial == {f"spatial_reduce.downsample.{i}" for i in range(3)}


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, moekd; assert 'torch' not in sys.modules and 'accelerate' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture(scope="module")
def run(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Run:  # noqa: F811
    """Return a finished run of two baselines, one of which was left out."""
    return moekd.distill(recipe_of(full()), runs=tmp_path_factory.mktemp("runs"), name="whole", quiet=True)


def test_a_run_says_where_things_are(run: Run) -> None:
    assert run.path.name == "whole"
    assert (run.student / "model.safetensors").is_file()
    assert run.report.is_file()
    written = json.loads((run.path / "results.json").read_text())
    assert written["test"]["test"].keys() == run.results["test"]["test"].keys() == {"student", "alone", "right", "both"}
    assert written["test"]["test"]["student"]["loss"] == run.results["test"]["test"]["student"]["loss"]


def test_the_student_is_a_plain_module_with_the_trained_logits(run: Run) -> None:
    student = moekd.load_student(run.path)
    assert isinstance(student, torch.nn.Module)
    assert not isinstance(student, Model)
    assert not student.training
    split = recipe_of(full()).build().data.split("test")
    batch = split.__getitems__(list(range(len(split))))
    with torch.no_grad():
        logits = student(batch["image"])
    loss = torch.nn.functional.cross_entropy(logits, batch["label"]).item()
    accuracy = (logits.argmax(1) == batch["label"]).float().mean().item()
    measured = run.results["test"]["test"]["student"]
    assert loss == pytest.approx(measured["loss"], abs=1e-6)
    assert accuracy == pytest.approx(measured["accuracy"])
    again = moekd.load_student(run.student)(batch["image"])
    assert torch.equal(again, logits)
    assert evaluate_run(run.path)["test"]["loss"] == pytest.approx(loss, abs=1e-6)


def test_distill_again_is_refused_and_resume_repeats_the_results(run: Run) -> None:
    recipe = recipe_of(full())
    with pytest.raises(ConfigError, match="exists already"):
        moekd.distill(recipe, runs=run.path.parent, name="whole", quiet=True)
    again = moekd.distill(recipe, runs=run.path.parent, name="whole", quiet=True, resume="auto")
    assert again.results["test"]["test"]["student"]["loss"] == run.results["test"]["test"]["student"]["loss"]


def test_baselines_can_be_left_out(tmp_path: Path, run: Run) -> None:
    recipe = recipe_of(full())
    alone = moekd.distill(recipe, runs=tmp_path, quiet=True, baselines=False)
    assert alone.path.name == "tiny"
    assert "alone" not in alone.results["test"]["test"]
    assert alone.results["test"]["test"]["student"]["loss"] == run.results["test"]["test"]["student"]["loss"]
    assert "alone" in recipe.config.baselines, "the recipe itself stays as it is"


def test_a_failed_start_leaves_the_name_free(tmp_path: Path) -> None:
    wrong = simple()
    wrong["trainer"] |= {"mixed_precision": "fp16"}
    with pytest.raises(ConfigError):
        moekd.distill(recipe_of(wrong), runs=tmp_path, name="mine", quiet=True)
    assert moekd.distill(recipe_of(simple({"epochs": 1})), runs=tmp_path, name="mine", quiet=True).report.is_file()


def test_pictures_of_the_users_own_with_yaml_alone(tmp_path: Path) -> None:
    """Folders of pictures by class: trained by a config, and predicted from the same files."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for label, colour in (("dark", 60), ("light", 190)):
            (tmp_path / "pictures" / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = (rng.normal(colour, 20, (14, 18, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / split / label / f"{index}.png")
    (tmp_path / "mine.yaml").write_text(
        f"""
        data:
          kind: files
          path: {tmp_path / "pictures"}
          format: imagefolder
          cache_dir: {tmp_path / "cache"}
          batch_size: 8
          fields: {{image: {{kind: image, size: 8, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}}}
        student: {{kind: small_cnn, inputs: [image], channels: [4], hidden: 8}}
        stages:
          - {{name: learn, trains: [student], epochs: 2, objectives: [cross_entropy]}}
        trainer: {{threads: 1, trackers: [], device: cpu}}
        """
    )
    run = moekd.distill(tmp_path / "mine.yaml", runs=tmp_path / "runs", quiet=True)
    split = Recipe.load(tmp_path / "mine.yaml").build().data.split("test")
    batch = split.__getitems__(list(range(len(split))))
    expected = moekd.load_student(run.path)(batch["image"]).softmax(dim=1)
    names = json.loads((run.student / "config.json").read_text())["class_names"]
    for row, sample in zip(expected, batch["id"].tolist(), strict=True):
        path = tmp_path / "pictures" / split.describe(sample).partition(", ")[2]
        assert path.is_file()
        (prediction,) = predict(run.path, [path])
        found = [dict(prediction.classes)[name] for name in names]
        assert found == pytest.approx(row.tolist(), abs=1e-5)
