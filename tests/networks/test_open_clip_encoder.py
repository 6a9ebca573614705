"""The image tower of a CLIP as an encoder, and heads that start from what the CLIP knows about class names."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from moekd.errors import ConfigError
from moekd.model import Model
from moekd.networks import ENCODERS, MultiHead, OpenClip, OpenClipEncoder, ZeroShotOptions
from moekd.stages.class_vectors import class_vectors_of

open_clip = pytest.importorskip("open_clip")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
FIELDS = {"image": {"modality": "image", "shape": (3, 20, 20), "dtype": "float32"}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file({key: value.contiguous() for key, value in open_clip.CLIP(**TINY).state_dict().items()}, file)
    return str(file)


def test_it_is_the_image_tower_of_the_whole_model(weights: str) -> None:
    encoder, whole = OpenClipEncoder(TINY, weights).eval(), OpenClip(TINY, pretrained=weights, fields=FIELDS).eval()
    pictures = torch.rand(2, 3, 20, 20)
    with torch.no_grad():
        prepared = whole.reader("image")(pictures)
        torch.testing.assert_close(encoder(prepared), whole(pictures)["embeddings"]["image"])
    assert encoder.out_features == 16
    assert ENCODERS.get("open_clip_encoder") is OpenClipEncoder
    kept, visual = sum(p.numel() for p in encoder.parameters()), sum(p.numel() for p in whole.model.visual.parameters())
    assert kept == visual, "the text tower is not part of it"


def test_heads_that_start_from_names_are_the_zero_shot_classifier(weights: str) -> None:
    names = ["cat", "dog", "umbrella"]
    clip = OpenClip(TINY, 3, weights, zero_shot=ZeroShotOptions(), class_names=names, fields=FIELDS).eval()
    scale = float(clip.scale_and_bias()[0].detach())
    student = MultiHead(3, OpenClipEncoder(TINY, weights), cosine=True, scale=scale, fields=FIELDS).eval()
    pictures = torch.rand(4, 3, 20, 20)
    with torch.no_grad():
        expected = clip(pictures)["logits"]
        student.start(class_vectors_of(Model(clip, ["image"]), "clip"))
        torch.testing.assert_close(student(pictures)["teacher"], expected, rtol=1e-4, atol=1e-4)


def test_mistakes_are_named(weights: str) -> None:
    with pytest.raises(ConfigError, match="open_clip has no 'ViT-B-33'"):
        OpenClipEncoder("ViT-B-33")
    with pytest.raises(ConfigError):
        OpenClipEncoder(TINY | {"embed_dim": 8}, weights)
    student = MultiHead(3, OpenClipEncoder(TINY, weights))
    with pytest.raises(ConfigError, match="width of the class vectors"):
        student.start(torch.zeros(3, 8))
