"""Students in the format of transformers: AutoModel loads the folder, without code of its own, with equal outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from moekd.errors import ModelError
from moekd.export import export, load_student
from moekd.networks import Transformers

from .students import BYTES, CLIP, IMAGE, NAMES, TOWER, save_tokenizer, write_student

TEXTS = ["a red apple", "two cats, and a dog", "rain"]
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def field(mean=0.5, std=0.25):
    return (torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 255 - mean) / std


def pixel_values(folder):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return processor([Image.fromarray(p) for p in PICTURES], return_tensors="pt")["pixel_values"]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_open_clip_becomes_clip(clip_run):
    folder, student = export(clip_run, "transformers"), load_student(clip_run)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    assert type(model).__name__ == "CLIPModel"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    said = student(field(), TEXTS)["embeddings"]
    close(model.get_image_features(pixel_values(folder)).pooler_output, said["image"])
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    close(model.get_text_features(**inputs).pooler_output, said["text"])
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    space = {"picture": Image.fromarray(PICTURES[0])}
    exec(code, space)
    close(space["image"], said["image"][:1])


@torch.no_grad()
def test_a_timm_image_tower_becomes_a_dual_encoder(tmp_path):
    vision = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    options = {"model": CLIP | {"vision_cfg": vision}}
    run = write_student(tmp_path / "run", "open_clip", ["image", "caption"], options)
    folder, student = export(run, "transformers"), load_student(run)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    assert type(model).__name__ == "VisionTextDualEncoderModel"
    close(model.get_image_features(pixel_values(folder)).pooler_output, student(field(), TEXTS)["embeddings"]["image"])


@torch.no_grad()
def test_timm_with_its_classifier(timm_run, tmp_path):
    folder, student = export(timm_run, "transformers", tmp_path / "folder"), load_student(timm_run)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert [model.config.id2label[i] for i in range(3)] == NAMES
    pictures = field()[:, :, :20, :20]
    close(model((pictures * 0.25 + 0.5 - mean_of(student)) / std_of(student)).logits, student(pictures)["logits"])
    trunk = transformers.AutoModel.from_pretrained(folder).eval()
    assert trunk(pictures).pooler_output.shape == student(pictures)["embeddings"]["image"].shape


def mean_of(student):
    return torch.tensor(student.settings.mean).view(3, 1, 1)


def std_of(student):
    return torch.tensor(student.settings.std).view(3, 1, 1)


@torch.no_grad()
def test_an_image_encoder_with_a_new_classifier(tmp_path):
    config = TOWER | {"model_type": "dinov2", "image_size": 28, "patch_size": 14, "mlp_ratio": 2}
    options = {"model": config, "classifier": "new", "image": {"size": 28, "mean": [0.4] * 3, "std": [0.3] * 3}}
    run = write_student(tmp_path / "run", "transformers", ["image"], options, {"image": IMAGE | {"shape": [3, 32, 32]}})
    folder, student = export(run, "transformers"), load_student(run)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    own = student.reader("image")(field())
    close(model(own).pooler_output, student(field())["embeddings"]["image"])
    assert pixel_values(folder).shape == (3, 3, 28, 28)
    assert (folder / "classifier.safetensors").is_file()
    again = Transformers(str(folder)).eval()
    close(again(field() * 0.25 + 0.5)["embeddings"]["image"], student(field())["embeddings"]["image"])


@torch.no_grad()
def test_a_sentence_encoder_keeps_its_pooling(tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    config = TOWER | {"model_type": "bert", "vocab_size": 15, "max_position_embeddings": 12}
    options = {"model": config, "tokenizer": str(tmp_path / "tokenizer"), "pool": "mean"}
    run = write_student(tmp_path / "run", "transformers", ["caption"], options, {"caption": BYTES})
    folder, student = export(run, "transformers"), load_student(run)
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
    again = Transformers(str(folder), fields={"caption": BYTES}).eval()
    texts = ["a red apple .", "two cat in the photo", "dog"]
    close(again(texts)["embeddings"]["text"], student(texts)["embeddings"]["text"])


@torch.no_grad()
def test_a_contrastive_model_of_the_library(tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    text = TOWER | {"vocab_size": 15, "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2}
    config = {"model_type": "clip", "text_config": text, "vision_config": TOWER | {"image_size": 32, "patch_size": 16}}
    options = {
        "model": config | {"projection_dim": 8},
        "tokenizer": str(tmp_path / "tokenizer"),
        "image": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    run = write_student(tmp_path / "run", "transformers", ["image", "caption"], options)
    folder, student = export(run, "transformers"), load_student(run)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    said = student(field(), ["a cat", "red apple", "dog"])["embeddings"]
    close(model.get_image_features(pixel_values(folder)).pooler_output, said["image"])
    ids = transformers.AutoTokenizer.from_pretrained(folder)(["a cat", "red apple", "dog"], padding=True)
    close(model.get_text_features(**{k: torch.tensor(v) for k, v in ids.items()}).pooler_output, said["text"])


def test_refusals_say_what_works(tmp_path):
    sigmoid = CLIP | {"init_logit_bias": -10.0}
    run = write_student(tmp_path / "a", "open_clip", ["image", "caption"], {"model": sigmoid})
    with pytest.raises(ModelError, match=r"bias on its cosines .*formats that can: open_clip, onnx"):
        export(run, "transformers")
    options = {"in_features": 12, "hidden": [8]}
    vector = {"vector": {"modality": "vector", "shape": [12], "dtype": "float32"}}
    run = write_student(tmp_path / "b", "mlp", ["vector"], options, vector)
    with pytest.raises(ModelError, match="networks of kind 'mlp' are no models of that library"):
        export(run, "transformers")
    assert list((run / "export").iterdir()) == []
