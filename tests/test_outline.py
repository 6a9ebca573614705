"""Configs whose data and weights are not at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.data.fields.audio import AudioField
from moekd.data.fields.field import Field
from moekd.data.fields.image import ImageField
from moekd.data.fields.text import TextField
from moekd.data.fields.vector import VectorField
from moekd.data.stand_in import stand_in
from moekd.errors import ConfigError, DataError
from moekd.outline import StandInNetwork, outline
from moekd.recipe import Recipe
from moekd.signals import Signals

CONFIG = """
data:
  kind: files
  path: nowhere
  fields: {image: {kind: image, size: 64}, caption: {kind: text, tokenizer: {kind: bytes, lower: false}}}
student: {kind: timm, model: resnet10t, inputs: [image]}
teachers:
  large: {kind: open_clip, model: ViT-B-32, pretrained: openai, inputs: [image, caption]}
  features:
    {kind: timm, model: vit_large_patch14_dinov2.lvd142m, inputs: [image], taps: [model.blocks.8], dtype: float16}
stages:
  - {name: distill, trains: [student, objectives], steps: 3, objectives: [{kind: embedding_kd, projection: mlp}]}
"""


def recipe(folder: Path, text: str = CONFIG) -> Recipe:
    file = folder / "full.yaml"
    file.write_text(text)
    return Recipe.load(file)


def test_large_models_without_data_and_weights(tmp_path: Path) -> None:
    found = outline(recipe(tmp_path))
    rows = {row["name"]: row for row in found.models}
    # 151,277,313 parameters is what open_clip's table of models says of ViT-B-32 (151.28 M).
    assert rows["teachers.large"]["parameters"] == 151_277_313
    assert rows["teachers.large"]["embeddings"] == {"image": 512, "text": 512}
    assert rows["teachers.features"]["taps"] == {"model.blocks.8": [1370, 1024]}
    assert rows["student"]["embeddings"] == {"image": 512}
    (stage,) = found.stages
    heads = 512 * 512 + 512 + 512 * 512 + 512 + 512 * 1024 + 1024 + 1024 * 1024 + 1024
    assert stage["trainable"] == rows["student"]["parameters"] + heads
    assert list(tmp_path.iterdir()) == [tmp_path / "full.yaml"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ViT-B-32", "ViT-B-23", "teachers.large: .*ViT-B-23.*did you mean"),
        ("pretrained: openai", "pretrained: openia", "teachers.large: .*openia"),
        ("model.blocks.8", "model.blocks.88", "teachers.features: .*model.blocks.88"),
        ("inputs: [image, caption]", "inputs: [image, sound]", "teachers.large.*sound"),
        (
            "{kind: embedding_kd, projection: mlp}",
            "contrastive",
            "stages.distill: contrastive needs the embedding 'text'",
        ),
        ("projection: mlp", "projection: none", "stages.distill.*512.*1024"),
    ],
)
def test_mistakes_are_found(tmp_path: Path, old: str, new: str, message: str) -> None:
    """F2: also for models that this machine can't hold."""
    with pytest.raises(ConfigError, match=message):
        outline(recipe(tmp_path, CONFIG.replace(old, new)))


def test_a_stand_in_gives_known_shapes_with_a_gradient() -> None:
    like = Signals(
        torch.zeros(2, 5), {"a.b": torch.zeros(2, 7, 3), "a.c": torch.zeros(2, 4)}, {"image": torch.zeros(2, 6)}
    )
    said = StandInNetwork(like)(torch.zeros(9, 1))
    assert said["logits"].shape == (9, 5)
    said["embeddings"]["image"].sum().backward()
    assert dict(StandInNetwork(like).named_modules()).keys() >= {"a.b", "a.c"}


def test_made_up_rows_have_the_fields_of_the_config(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "image": ImageField(16, column="picture"),
        "caption": TextField(),
        "sound": AudioField(0.1),
        "vector": VectorField(size=3),
    }
    batch = stand_in(fields, tmp_path, ["a", "b", "c"], ["test_far"]).split("test_far").__getitems__([0, 1])
    assert batch["image"].shape == (2, 3, 16, 16)
    assert batch["sound"].shape == (2, 1, 1600)
    assert batch["vector"].tolist() == [[0.5] * 3] * 2
    assert batch["label"].tolist() == [0, 1]


@pytest.mark.parametrize("field", [VectorField(), Field()])
def test_what_can_not_be_made_up_is_named(tmp_path: Path, field: Field) -> None:
    with pytest.raises(DataError, match="'depth'"):
        stand_in({"depth": field}, tmp_path)
