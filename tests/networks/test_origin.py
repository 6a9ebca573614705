"""F3: weights that were trained on classes in another order, or on inputs prepared differently, are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moekd.errors import ConfigError
from moekd.export import export_student
from moekd.networks.origin import check_origin

from ..engine.conftest import _tiny_kinds  # noqa: F401
from ..engine.tiny import MLP, recipe_of, simple

CLOUDS = [f"cloud {i}" for i in range(4)]


def exported(folder: Path, **changes: Any) -> Path:
    """Return the weights of an exported student with changes in its description."""
    program = recipe_of(simple()).build()
    config = {
        "network": {"kind": "mlp", "options": {"in_features": 8, "hidden": [12]}},
        "class_names": CLOUDS,
        "fields": {"left": {"shape": [8], "dtype": "float32", "modality": "vector"}},
    }
    path = export_student(program.phases[0].student, config | changes, folder / "student", program=False)
    return path / "model.safetensors"


def build(weights: Path) -> None:
    """Build a recipe with the weights in a teacher."""
    teacher = MLP | {"weights": str(weights)}
    recipe_of(simple({"objectives": ["kd"]}, teachers={"ready": teacher})).build()


def test_a_student_becomes_a_teacher(tmp_path: Path) -> None:
    build(exported(tmp_path))


@pytest.mark.parametrize(
    ("names", "reason"),
    [(CLOUDS[::-1], "the same classes in another order"), ([*CLOUDS[:3], "rain"], "other classes")],
)
def test_other_classes(tmp_path: Path, names: list[str], reason: str) -> None:
    """F3: the number of classes is right, their order is not."""
    with pytest.raises(
        ConfigError, match=rf"teachers\.ready\.weights: .* was trained on {reason}: .*; the data set has"
    ):
        build(exported(tmp_path, class_names=names))


def test_another_preparation(tmp_path: Path) -> None:
    """F3: the normalisation of the teacher's pictures is not that of the data set."""
    pictures = {"shape": [8], "dtype": "float32", "modality": "image", "mean": [0.5], "std": [0.2]}
    weights = exported(tmp_path, fields={"left": pictures})
    check_origin(weights, "teachers.a", ["left"], CLOUDS, {"left": {"mean": (0.5,), "std": (0.2,)}})
    with pytest.raises(ConfigError, match=r"with mean \[0\.5\]; the data set has mean \[0\.4\]: prepare the field"):
        check_origin(weights, "teachers.a", ["left"], CLOUDS, {"left": {"mean": (0.4,), "std": (0.2,)}})


def test_files_that_tell_nothing(tmp_path: Path) -> None:
    weights = exported(tmp_path, class_names=CLOUDS[::-1])
    config = weights.parent / "config.json"
    for content in ("[", "[]", json.dumps({"format": "other", "class_names": ["x"]})):
        config.write_text(content)
        build(weights)
