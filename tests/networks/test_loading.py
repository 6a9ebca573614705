"""Models without their weights: as descriptions on the meta device, and as architectures that are filled later."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from moekd.errors import ConfigError
from moekd.networks import OpenClip, Timm, TimmEncoder, Transformers, ZeroShotOptions

IMAGE = {"modality": "image", "shape": (3, 40, 40), "dtype": "float32"}
BYTES = {"modality": "text", "shape": (40,), "dtype": "int64", "tokenizer": {"bytes": True, "lower": False}}
HUB_IDS = {"modality": "text", "shape": (9,), "dtype": "int64", "tokenizer": {"context": 9, "pad_id": 1, "probe": {}}}
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


@pytest.mark.parametrize(
    ("model", "tag", "width", "size"),
    [("ViT-B-32", "laion2b_s34b_b79k", 512, 224), ("ViT-B-16-SigLIP-256", "webli", 768, 256)],
)
def test_published_models_of_open_clip_are_described(model, tag, width, size):
    pytest.importorskip("open_clip")
    zero_shot = ZeroShotOptions(["a photo of a {}."])
    network = OpenClip(
        model,
        3,
        tag,
        zero_shot=zero_shot,
        class_names=["cat", "dog", "tree"],
        fields={"image": IMAGE, "caption": BYTES},
        loading="meta",
    ).eval()
    assert all(p.is_meta for p in network.parameters())
    said = network(meta(2, 3, 40, 40), torch.ones(2, 40, dtype=torch.int64))
    assert said["embeddings"]["image"].shape == said["embeddings"]["text"].shape == (2, width)
    assert said["logits"].shape == (2, 3)
    assert said["logits"].is_meta
    assert network.settings.size == (size, size)
    assert network.settings.mean == ((0.5,) * 3 if "SigLIP" in model else (0.48145466, 0.4578275, 0.40821073))


def test_pictures_of_a_tag_are_kept_without_its_weights():
    open_clip = pytest.importorskip("open_clip")
    said = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    network = OpenClip("ViT-B-32", pretrained="openai", options={"force_quick_gelu": True}, loading="meta")
    assert network.settings.mean == tuple(said["mean"])
    with pytest.raises(ConfigError, match="'opinai' is no tag of 'ViT-B-32' and no local file; did you mean 'openai'"):
        OpenClip("ViT-B-32", pretrained="opinai", loading="meta")
    with pytest.raises(ConfigError, match="to check it without a download, give the architecture itself"):
        OpenClip("hf-hub:owner/name", loading="meta")


def test_an_architecture_needs_no_weights(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.25] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    network = OpenClip(str(tmp_path), loading="architecture")
    assert network.settings.mean == (0.25,) * 3
    weights = {key: value.contiguous() for key, value in open_clip.CLIP(**TINY).state_dict().items()}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    filled = OpenClip(str(tmp_path))
    assert not torch.equal(network.model.visual.proj, filled.model.visual.proj)
    network.load_state_dict(filled.state_dict())
    torch.testing.assert_close(network.embed_texts(["a"]), filled.embed_texts(["a"]))
    missing = OpenClip(TINY, pretrained=str(tmp_path / "gone.safetensors"), loading="architecture")
    assert missing.model.visual.proj.shape == (16, 16)


def test_backbones_of_timm_are_described():
    pytest.importorskip("timm")
    network = Timm("vit_base_patch14_dinov2.lvd142m", 5, True, classifier="new", loading="meta", fields={"x": IMAGE})
    network.to("meta")
    said = network.eval()(meta(2, 3, 40, 40))
    assert said["embeddings"]["image"].shape == (2, 768)
    assert said["logits"].shape == (2, 5)
    assert network.settings.size == (518, 518)
    assert TimmEncoder("resnet10t", pretrained="gone.safetensors", loading="architecture").out_features == 512


AUDIO = {"modality": "audio", "dtype": "float32", "log_mel": False}
SIGLIP2 = {"model_type": "siglip", "vision_config": {"image_size": 256}, "text_config": {"vocab_size": 256_000}}
CASES = {
    "clip": ({"model_type": "clip"}, {"image": IMAGE, "caption": BYTES}, {"image": 512, "text": 512}),
    "siglip2": (SIGLIP2, {"image": IMAGE, "caption": HUB_IDS}, {"image": 768, "text": 768}),
    "dinov2": ({"model_type": "dinov2"}, {"image": IMAGE}, {"image": 768}),
    "dinov3": (
        {"model_type": "dinov3_vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        {"image": IMAGE},
        {"image": 768},
    ),
    "vit": ({"model_type": "vit"}, {"image": IMAGE}, {"image": 768}),
    "bert": ({"model_type": "bert"}, {"caption": BYTES}, {"text": 768}),
    "clap": (
        {"model_type": "clap"},
        {"sound": AUDIO | {"shape": (1, 48_000), "sample_rate": 48_000}, "caption": BYTES},
        {"audio": 512, "text": 512},
    ),
    "ast": (
        {"model_type": "audio-spectrogram-transformer"},
        {"sound": AUDIO | {"shape": (1, 16_000), "sample_rate": 16_000}},
        {"audio": 768},
    ),
    "whisper": (
        {"model_type": "whisper"},
        {"sound": AUDIO | {"shape": (1, 16_000), "sample_rate": 16_000}},
        {"audio": 384},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_models_of_transformers_are_described(name):
    architecture, fields, widths = CASES[name]
    network = Transformers("owner/name", architecture=architecture, fields=fields, loading="meta").eval()
    values = [
        torch.zeros(2, *field["shape"], dtype=torch.int64) if field["dtype"] == "int64" else meta(2, *field["shape"])
        for field in fields.values()
    ]
    said = network(*values)["embeddings"]
    assert {modality: value.shape[1] for modality, value in said.items()} == widths
    assert all(value.is_meta for value in said.values())


def test_an_architecture_is_compared_with_the_files(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(tmp_path)
    image = {"modality": "image", "shape": (3, 28, 28), "dtype": "float32"}
    from moekd.networks import ImageOptions

    asked = ImageOptions(28, [0.5] * 3, [0.5] * 3)
    said = {"model_type": "dinov2", "hidden_size": 32, "patch_size": 14}
    network = Transformers(str(tmp_path), architecture=said, image=asked, fields={"image": image})
    bare = Transformers(str(tmp_path), image=asked, fields={"image": image}, loading="architecture")
    bare.load_state_dict(network.state_dict())
    with pytest.raises(ConfigError, match=r"architecture.hidden_size: 48 here, 32 in "):
        Transformers(str(tmp_path), architecture=said | {"hidden_size": 48}, image=asked, fields={"image": image})
    with pytest.raises(ConfigError, match="to check it without a download, say what it is"):
        Transformers("owner/name", loading="meta")
    with pytest.raises(ConfigError, match="'model' is the architecture already"):
        Transformers(said, architecture=said, loading="meta")
