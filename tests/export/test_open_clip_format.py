"""Students in open_clip's format: the library loads the folder and gives the student's embeddings."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from moekd.errors import DataError, ModelError
from moekd.export import export, load_student
from moekd.export.open_clip_format import open_clip_source, prove_open_clip

from .students import CLIP, FIELDS, write_student

TEXTS = ["a red apple", "two cats & a dog", "it's raining, again"]


@pytest.fixture(scope="module")
def folder(clip_run):
    return export(clip_run, "open_clip", clip_run / "open_clip")


def test_embeddings_come_back(clip_run, folder):
    student = load_student(clip_run)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in pixels]))
        text = model.encode_text(tokenizer(TEXTS))
        field = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        said = student(field, TEXTS)["embeddings"]
    torch.testing.assert_close(image, said["image"], rtol=0, atol=1e-5)
    torch.testing.assert_close(text, said["text"], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.logit_scale, student.model.logit_scale)
    assert 'create_model_and_transforms("local-dir:FOLDER")' in (folder / "README.md").read_text()


def test_pictures_of_other_sizes_are_prepared_alike(clip_run, folder):
    student = load_student(clip_run)
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ramp = np.linspace(0, 255, 48 * 60 * 3).reshape(48, 60, 3).astype(np.uint8)
    field = (torch.from_numpy(ramp).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    ours = student.reader("image")(field)[0]
    assert (preprocess(Image.fromarray(ramp)) - ours).abs().max() < 0.05


def test_own_preparation_goes_along(tmp_path):
    options = {"model": CLIP, "image": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "resize": "squash"}}
    run = write_student(tmp_path / "run", "open_clip", ["image", "caption"], options)
    written = export(run, "open_clip")
    said = json.loads((written / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert said["mean"] == [0.1, 0.2, 0.3]
    assert said["resize_mode"] == "squash"


def test_a_timm_tower_and_a_bias(tmp_path):
    vision = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    architecture = CLIP | {"vision_cfg": vision, "init_logit_bias": -10.0}
    run = write_student(tmp_path / "run", "open_clip", ["image", "caption"], {"model": architecture})
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{export(run, 'open_clip')}")
    torch.testing.assert_close(model.logit_bias, load_student(run).model.logit_bias)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": {"interpolation": "nearest"}}, "by the nearest pixel"),
        ({"image": {"scale_to": 40}}, "scaled to 40 before the cut"),
    ],
)
def test_what_it_can_not_express_is_refused(tmp_path, options, words):
    run = write_student(tmp_path / "run", "open_clip", ["image", "caption"], {"model": CLIP, **options})
    with pytest.raises(ModelError, match=words) as caught:
        export(run, "open_clip")
    assert "onnx" in str(caught.value)
    assert list((run / "export").iterdir()) == []


def test_other_kinds_are_refused(timm_run):
    with pytest.raises(ModelError, match="this student is of kind 'timm'; formats that can: onnx"):
        export(timm_run, "open_clip")


def test_changed_weights_are_noticed(clip_run, folder, tmp_path):
    student = load_student(clip_run)
    source = open_clip_source(student, {"network": {"kind": "open_clip", "options": {"model": CLIP}}, "fields": FIELDS})
    assert max(prove_open_clip(student, source, folder).values()) <= 1e-5
    with torch.no_grad():
        student.model.visual.proj.add_(1e-3)
    with pytest.raises(ModelError, match="image comes back different"):
        prove_open_clip(student, source, folder)
    with pytest.raises(ModelError, match="open_clip can't load what was written"):
        prove_open_clip(student, source, tmp_path)


def test_existing_folders_stay(clip_run, folder):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(DataError, match="exists already"):
        export(clip_run, "open_clip", folder)
    assert sorted(path.name for path in folder.iterdir()) == before
