"""Compact students in whole recipes: teachers of other widths, tokenizers and modalities, and export."""

from __future__ import annotations

import copy

import pytest
import torch

from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.export import export_student, load_student

from .test_adapters_in_configs import CLIP, program, raw  # noqa: F401

TOWERS = {
    "kind": "two_tower",
    "inputs": ["image", "caption"],
    "tower": {"kind": "cnn_encoder", "channels": [8, 12]},
    "text": {"tokenizer": "bytes", "context": 32, "width": 8, "layers": 1, "heads": 2},
    "width": 10,
}
HEADS = [
    {"kind": "contrastive", "scale": "model"},
    {"kind": "contrastive_kd", "teacher": "pair"},
    {"kind": "embedding_kd", "modalities": "common", "normalise": "phi_s", "distances": {"cosine": 1, "mse": 1}},
    {"kind": "embedding_kd", "name": "rungs", "teacher": "pair", "projection": "ladder", "taps": ["model.image.conv1"]},
    {"kind": "interactive_contrastive", "teacher": "pair"},
]


@pytest.fixture
def towers(raw):  # noqa: F811
    raw["student"] = copy.deepcopy(TOWERS) | {"taps": ["model.image.conv1"], "classifier": "new"}
    wide = copy.deepcopy(CLIP) | {"embed_dim": 24}
    words = {"kind": "open_clip", "model": wide, "inputs": ["caption"]}
    raw["teachers"] = {"pair": raw["teachers"]["pair"], "words": words}
    raw["stages"][0]["objectives"] = ["cross_entropy", *HEADS]
    return raw


def test_heads_for_teachers_of_other_widths_and_modalities(towers):
    built = program(towers)
    (row,) = dry_run(built)
    assert {name.partition("/")[0] for name in row["losses"]} >= {"contrastive", "contrastive_kd", "embedding_kd"}
    everything = [weighted.objective for weighted in built.phases[0].stages[0].settings.objectives]
    common = everything[3]
    assert common.heads.widths == {
        ("pair", "image"): (10, 16),
        ("pair", "text"): (10, 16),
        ("words", "text"): (10, 24),
    }
    assert set(everything[4].heads.heads) == {"pair:image"}


def test_a_teacher_without_the_embedding_is_told_before_a_step(towers):
    towers["stages"][0]["objectives"] = [{"kind": "embedding_kd", "teacher": "words"}]
    with pytest.raises(ConfigError, match="teacher 'words' gives no embedding 'image'; it gives text"):
        program(towers)
    towers["stages"][0]["objectives"] = [{"kind": "embedding_kd", "teacher": "pair", "projection": "none"}]
    with pytest.raises(ConfigError, match="'image' has 10 numbers in the student and 16 in teacher 'pair'"):
        program(towers)


def test_the_student_of_a_run_is_rebuilt_and_sees_pictures_alone(towers, tmp_path):
    built = program(towers)
    student = built.phases[0].student
    split = built.data.split("train")
    more = {
        "image": {"mean": [0.5] * 3, "std": [0.25] * 3},
        "caption": {"tokenizer": {"bytes": True, "lower": False}},
    }
    fields = {name: vars(spec) | more.get(name, {}) for name, spec in split.fields.items()}
    options = {key: value for key, value in towers["student"].items() if key not in ("kind", "inputs", "taps")}
    config = {"network": {"kind": "two_tower", "options": options}, "class_names": ["cat", "dog"], "fields": fields}
    export_student(student, config, tmp_path / "student", program=False)
    network = load_student(tmp_path)
    batch = split.__getitems__([0, 1, 2])
    student.eval()
    with torch.no_grad():
        whole, alone = student(batch), network(batch["image"])
    torch.testing.assert_close(alone["logits"], whole.logits)
    torch.testing.assert_close(alone["embeddings"]["image"], whole.embeddings["image"])
