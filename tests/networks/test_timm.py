"""Backbones of timm: the adapter gives what the library itself gives, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from moekd.errors import ConfigError
from moekd.networks import ImageOptions, Timm

timm = pytest.importorskip("timm")
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
NAMES = ["vit_tiny_patch16_224", "mobilenetv3_small_050", "tf_efficientnet_lite0", "resnet10t", "convnext_atto"]


def options_of(name):
    return VIT if name.startswith("vit") else {}


@pytest.mark.parametrize("name", NAMES)
def test_own_classifier_equals_the_model_of_the_library(name, tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=1000, **options_of(name)).eval()
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    ours = Timm(name, pretrained=str(tmp_path / "w.safetensors"), classifier="own", options=options_of(name)).eval()
    raw = torch.rand(2, 3, 40, 36)
    with torch.no_grad():
        said, prepared = ours(raw), ours.reader("image")(raw)
        torch.testing.assert_close(said["logits"], theirs(prepared))
        pooled = theirs.forward_head(theirs.forward_features(prepared), pre_logits=True)
        torch.testing.assert_close(said["embeddings"]["image"], pooled)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_pictures_are_prepared_as_timm_does(name):
    from PIL import Image

    network = Timm(name)
    config = timm.data.resolve_model_data_config(network.model)
    transform = timm.data.create_transform(**config, is_training=False)
    pixels = (torch.linspace(0, 255, 60 * 50 * 3).reshape(60, 50, 3)).to(torch.uint8)
    expected = transform(Image.fromarray(pixels.numpy()))
    found = network.reader("image")(pixels.permute(2, 0, 1)[None] / 255)[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 2.5 / 255 / min(config["std"])


def test_a_new_classifier_and_embeddings_alone():
    network = Timm("resnet10t", num_classes=7, classifier="new", image=ImageOptions(resize="none"))
    said = network(torch.rand(2, 3, 64, 64))
    assert said["logits"].shape == (2, 7)
    assert said["embeddings"]["image"].shape == (2, 512)
    assert "logits" not in Timm("resnet10t")(torch.rand(2, 3, 64, 64))


def test_image_size_of_the_options_is_the_size_of_pictures():
    assert Timm("vit_tiny_patch16_224", options=VIT).settings.size == (32, 32)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ConfigError, match="did you mean"):
        Timm("resnet18x")
    with pytest.raises(ConfigError, match="can't make"):
        Timm("resnet10t", options={"no_such_option": 1})
    with pytest.raises(ConfigError, match="num_classes can't be set here"):
        Timm("resnet10t", options={"num_classes": 3})
    with pytest.raises(ConfigError, match="modality 'text', this model reads image"):
        Timm("resnet10t", fields={"text": {"modality": "text", "shape": (384,), "dtype": "float32"}})
    with pytest.raises(ConfigError, match="number of classes is not known"):
        Timm("resnet10t", classifier="new")
    with pytest.raises(ConfigError, match="no file"):
        Timm("resnet10t", pretrained=str(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match="pickles"):
        Timm("resnet10t", pretrained="weights.pth")
