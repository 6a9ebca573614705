"""Outside models in a config: each gets the data set's field in its own way, mistakes are told before a step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from moekd.config import parse_recipe
from moekd.errors import ConfigError
from moekd.export import build_network
from moekd.recipe import Recipe

pytest.importorskip("open_clip")
pytest.importorskip("timm")
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def raw(tmp_path):
    """A recipe on a table of pictures with captions: an open_clip teacher by class names, a timm student."""
    rows, generator = ["photo,caption,label,part"], np.random.default_rng(0)
    for index, part in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2):
        pixels = generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,Picture no. {index},{'cat' if index % 2 else 'dog'},{part}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    image = {"kind": "image", "column": "photo", "size": 20, "mean": [0.5] * 3, "std": [0.25] * 3}
    caption = {"kind": "text", "tokenizer": {"kind": "bytes", "context": 32, "lower": False}}
    source = {"kind": "files", "path": str(tmp_path / "table.csv"), "split": "part", "batch_size": 4}
    student = {"kind": "timm", "model": "resnet10t", "classifier": "new", "image": {"resize": "none"}}
    clip = {"kind": "open_clip", "model": CLIP}
    return {
        "data": source | {"fields": {"image": image, "caption": caption}},
        "student": student | {"inputs": ["image"]},
        "teachers": {
            "by_name": clip | {"zero_shot": {"templates": ["a {}."]}, "inputs": ["image"]},
            "pair": clip | {"inputs": ["image", "caption"], "taps": ["model.visual.transformer.resblocks.0"]},
        },
        "stages": [{"name": "kd", "trains": ["student"], "epochs": 1, "objectives": [{"kind": "cross_entropy"}]}],
    }


def program(raw):
    return Recipe(parse_recipe(copy.deepcopy(raw), "test.yaml"), "test.yaml").build()


def test_every_model_gets_the_picture_it_was_trained_on(raw):
    built = program(raw)
    batch = built.data.split("train").__getitems__([0, 1, 2])
    student, pool = built.phases[0].student, built.pool
    assert student(batch).logits.shape == (3, 2)
    pictures = batch["image"] * 0.25 + 0.5
    reader = pool.teacher("pair").network.reader("image")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (reader.settings.mean, reader.settings.std))
    seen = reader(batch["image"]) * std + mean
    assert seen.shape == (3, 3, 32, 32)
    assert (seen.mean() - pictures.mean()).abs() < 0.02
    said = pool(batch, ["by_name", "pair"], features=True)
    assert said["by_name"].logits.shape == (3, 2)
    assert set(said["pair"].embeddings) == {"image", "text"}
    assert said["pair"].features["model.visual.transformer.resblocks.0"].shape[0] == 3
    assert said["pair"].heads["logit_scale"].shape == (3,)


def test_rows_of_a_teacher_and_its_fingerprint(raw):
    pool = program(raw).pool
    batch = program(raw).data.split("train").__getitems__([0, 1, 2, 3])
    before = pool.fingerprint("by_name")
    whole = pool(batch, ["by_name", "pair"])
    rows = {"by_name": torch.tensor([2, 0]), "pair": torch.tensor([3])}
    part = pool(batch, ["by_name", "pair"], rows)
    torch.testing.assert_close(part["by_name"].logits, whole["by_name"].logits[[2, 0]])
    torch.testing.assert_close(part["pair"].embeddings["text"], whole["pair"].embeddings["text"][[3]])
    assert pool.fingerprint("by_name") == before
    raw["teachers"]["by_name"]["zero_shot"]["templates"] = ["{}"]
    assert program(raw).pool.fingerprint("by_name") != before


def test_a_student_is_built_again_from_its_description(raw):
    built = program(raw)
    student = built.phases[0].student
    image = vars(built.data.split("train").fields["image"])
    document = {"class_names": ["cat", "dog"], "inputs": ["image"], "fields": {"image": image}}
    options = {key: value for key, value in raw["student"].items() if key not in ("kind", "inputs")}
    context = {"num_classes": 2}
    network = build_network({"kind": "timm", "options": options, "context": context}, document)
    network.load_state_dict(student.network.state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": ["caption"], "kind": "timm", "model": "resnet10t"}, "modality 'text', this model reads image"),
        ({"zero_shot": {"names": ["one"]}}, "expected 2 names"),
        ({"zero_shot": {"templates": ["a photo"]}}, "one {} for the name"),
        ({"image": {"interpolation": "nearest", "mean": [0.5]}}, "one value for red, green and blue"),
    ],
)
def test_a_teacher_that_does_not_fit_is_told(raw, change, words):
    teacher = raw["teachers"]["by_name"]
    raw["teachers"]["by_name"] = (change if "kind" in change else teacher) | change
    with pytest.raises(ConfigError, match=words) as caught:
        program(raw)
    assert "teachers.by_name" in str(caught.value)


def test_a_data_set_that_hides_its_normalisation_is_found_out(raw):
    from moekd.assembly import probe
    from moekd.config import build
    from moekd.data import DATASETS
    from moekd.model import Model
    from moekd.networks import Timm

    recipe = parse_recipe(copy.deepcopy(raw), "test.yaml")
    dataset = build(recipe.data.spec, DATASETS, where="data")
    sample = dataset.split("train").__getitems__([0, 1])
    hidden = Model(Timm("resnet10t", fields={"image": vars(dataset.fields["image"])}), ["image"])
    with pytest.raises(ConfigError, match="pixels are from"):
        probe(hidden, "student", sample, 2, dataset)
