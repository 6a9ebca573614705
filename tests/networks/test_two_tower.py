"""Compact students for pictures and texts: what they read, what they say, and their sizes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from moekd.errors import ConfigError, ModelError
from moekd.networks import (
    PRESETS,
    CnnEncoder,
    ImageOptions,
    TextOptions,
    TextTower,
    TimmEncoder,
    TwoTower,
    VitEncoder,
    ZeroShotOptions,
)

IMAGE = {"modality": "image", "shape": (3, 16, 16), "dtype": "float32", "mean": [0.5] * 3, "std": [0.25] * 3}
BYTES = {"modality": "text", "shape": (40,), "dtype": "int64", "tokenizer": {"bytes": True, "lower": False}}
VECTORS = {"modality": "text", "shape": (12,), "dtype": "float32"}
TEXT = TextOptions(context=24, width=16, layers=2, heads=2)
TEXTS = ["red apple", "Grün", ""]


def cnn() -> CnnEncoder:
    return CnnEncoder((8, 12))


def vit(**options) -> VitEncoder:
    return VitEncoder(image_size=16, patch_size=8, width=16, layers=2, heads=2, **options)


def byte_ids(texts, width=40):
    ids = torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in enumerate(texts):
        data = torch.tensor(list(text.encode()), dtype=torch.int64)
        ids[row, : len(data)] = data + 1
    return ids


@pytest.mark.parametrize("tower", [cnn, vit, lambda: vit(pool="cls", pre_norm=True)])
def test_pictures_and_texts_meet_in_one_space(tower):
    network = TwoTower(tower=tower(), text=TEXT, width=10, fields={"image": IMAGE, "caption": BYTES}).eval()
    pictures = torch.rand(3, 3, 16, 16)
    said = network((pictures - 0.5) / 0.25, byte_ids(TEXTS))
    image, text = said["embeddings"]["image"], said["embeddings"]["text"]
    assert image.shape == text.shape == (3, 10)
    expected = network.model.image_projection(network.model.image((pictures - 0.5) / 0.5))
    torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text, network.embed_texts(TEXTS), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(said["logit_scale"], torch.full((3,), 1 / 0.07))
    (image.sum() + text.sum() + said["logit_scale"].sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_pictures_can_be_given_alone():
    network = TwoTower(7, tower=cnn(), text=TEXT, classifier="new", fields={"image": IMAGE, "caption": BYTES}).eval()
    value = torch.randn(2, 3, 16, 16)
    said = network(value)
    assert set(said["embeddings"]) == {"image"}
    assert said["logits"].shape == (2, 7)
    torch.testing.assert_close(network.embed("image", value), said["embeddings"]["image"])
    assert torch.equal(network(value, byte_ids(TEXTS[:2]))["logits"], said["logits"])
    with pytest.raises(ModelError, match="reads 2 inputs"):
        network(value, byte_ids(TEXTS[:2]), value)


def test_the_caption_comes_first_and_the_picture_is_classified():
    network = TwoTower(7, tower=cnn(), text=TEXT, classifier="new", fields={"caption": BYTES, "image": IMAGE}).eval()
    value = torch.randn(2, 3, 16, 16)
    said = network(byte_ids(TEXTS[:2]), value)
    torch.testing.assert_close(said["logits"], network.classifier(said["embeddings"]["image"]))
    assert "logits" not in network(byte_ids(TEXTS[:2]))


def test_frozen_text_vectors_are_the_space_of_the_pictures():
    network = TwoTower(tower=cnn(), text="vectors", fields={"image": IMAGE, "text": VECTORS})
    value, vectors = torch.randn(4, 3, 16, 16), torch.randn(4, 12)
    said = network(value, vectors)
    assert torch.equal(said["embeddings"]["text"], vectors)
    assert said["embeddings"]["image"].shape == (4, 12)
    assert not network.text_parameters()
    mapped = TwoTower(tower=cnn(), text="vectors", width=5, fields={"image": IMAGE, "text": VECTORS})
    assert mapped(value, vectors)["embeddings"]["text"].shape == (4, 5)
    assert [p.shape for p in mapped.text_parameters()] == [(5, 12)]
    with pytest.raises(ModelError, match=r"expected shape \[B, 12\]"):
        network(value, torch.randn(4, 13))
    with pytest.raises(ConfigError, match=r"expected vectors of texts, float32 \[D\]"):
        TwoTower(tower=cnn(), text="vectors", fields={"image": IMAGE, "text": BYTES})
    with pytest.raises(ConfigError, match="needs a field with vectors"):
        TwoTower(tower=cnn(), text="vectors", fields={"image": IMAGE})


def test_class_names_make_a_classifier():
    names = ["cat", "dog", "tall tree"]
    options = ZeroShotOptions(["a photo of a {}.", "{}"])
    network = TwoTower(3, tower=cnn(), text=TEXT, zero_shot=options, class_names=names, fields={"image": IMAGE}).eval()
    said = network(torch.randn(2, 3, 16, 16))
    prompts = [[f"a photo of a {name}.", name] for name in names]
    vectors = torch.stack([F.normalize(F.normalize(network.embed_texts(p), dim=1).mean(0), dim=0) for p in prompts])
    expected = F.normalize(said["embeddings"]["image"], dim=1) @ vectors.T / 0.07
    torch.testing.assert_close(said["logits"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="no text tower"):
        TwoTower(3, tower=cnn(), zero_shot=options, class_names=names, fields={"image": IMAGE})


def test_scale_and_bias():
    network = TwoTower(tower=cnn(), text=TEXT, sigmoid=True, fields={"image": IMAGE, "caption": BYTES})
    scale, bias = network.scale_and_bias()
    assert scale is not None
    assert bias is not None
    torch.testing.assert_close(scale, torch.tensor(10.0))
    assert bias.item() == -10
    with torch.no_grad():
        network.model.logit_scale.fill_(9.0)
    found = network.scale_and_bias()[0]
    assert found is not None
    torch.testing.assert_close(found, torch.tensor(100.0))
    found.backward()
    assert network.model.logit_scale.grad.item() > 0, "a scale at its bound can fall again"


def test_texts_do_not_depend_on_the_padding_of_others():
    for options in (TEXT, TextOptions(context=24, width=16, layers=2, heads=2, causal=True, pool="last")):
        tower = TextTower(options, 257).eval()
        ids = byte_ids(["ab", "abcdefgh"], 8)
        both = tower(ids, ids != 0)
        torch.testing.assert_close(both[:1], tower(ids[:1, :2], ids[:1, :2] != 0))
    with pytest.raises(ModelError, match="25 tokens, it takes up to 24"):
        tower(torch.ones(1, 25, dtype=torch.int64), torch.ones(1, 25, dtype=torch.bool))


def test_a_causal_tower_looks_back_only():
    tower = TextTower(TextOptions(context=8, width=16, layers=1, heads=2, causal=True, pool="last"), 257).eval()
    block, tokens = tower.blocks[0], torch.randn(1, 6, 16)
    changed = tokens.clone()
    changed[:, 4:] = torch.randn(1, 2, 16)
    mask = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    torch.testing.assert_close(block(tokens, mask, True)[:, :4], block(changed, mask, True)[:, :4])
    assert not torch.allclose(block(tokens, mask, False)[:, :4], block(changed, mask, False)[:, :4])


def test_tokens_of_clip_and_their_ids_in_a_field():
    open_clip = pytest.importorskip("open_clip")
    options = TextOptions("clip", context=12, width=16, layers=1, heads=2, pool="last")
    network = TwoTower(tower=cnn(), text=options, fields={"caption": BYTES}).eval()
    ids, mask = network.texts["caption"](["red apple!", ""])
    assert torch.equal(ids, open_clip.SimpleTokenizer(context_length=12)(["red apple!", ""]))
    assert mask.sum(dim=1).tolist() == [5, 2]
    expected = network.embed_texts(["red apple!", "Grün"])
    torch.testing.assert_close(network(byte_ids(["red apple!", "Grün"]))["embeddings"]["text"], expected)


def test_towers_can_be_traced():
    network = TwoTower(tower=vit(), text=TEXT, fields={"image": IMAGE, "caption": BYTES}).eval()

    class Image(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, value):
            return self.network.embed("image", value)

    class Text(Image):
        def forward(self, ids, mask):
            return self.network.encode_text(ids, mask)

    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=1, max=24)
    value = torch.randn(3, 3, 16, 16)
    program = torch.export.export(Image(), (value,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(program(value[:2]), network.embed("image", value[:2]))
    ids, mask = network.texts["caption"](TEXTS)
    axes = {0: batch, 1: length}
    program = torch.export.export(Text(), (ids, mask), dynamic_shapes=(axes, axes)).module()
    torch.testing.assert_close(program(ids[:2, :5], mask[:2, :5]), network.encode_text(ids[:2, :5], mask[:2, :5]))


@pytest.mark.parametrize(
    ("preset", "image", "text", "both"),
    [
        ("tiny", 219_096, 441_984, 702_041),
        ("s0", 10_882_176, 37_946_880, 49_615_489),
        ("s1", 21_016_832, 63_165_952, 84_969_217),
        ("s2", 35_159_360, 63_165_952, 99_242_817),
        ("b", 85_955_328, 63_165_952, 149_776_641),
    ],
)
def test_presets_have_the_documented_sizes(preset, image, text, both):
    pytest.importorskip("timm")
    pytest.importorskip("open_clip")
    network = TwoTower(preset=preset, loading="meta")
    counts = [sum(p.numel() for p in part.parameters()) for part in (network.model.image, network.model.text, network)]
    assert counts == [image, text, both]
    assert network.model.width == PRESETS[preset].width
    assert next(network.parameters()).is_meta


def test_parts_of_a_preset_can_be_replaced():
    network = TwoTower(preset="tiny", tower=cnn(), width=9, fields={"image": IMAGE, "caption": BYTES})
    assert isinstance(network.model.text, TextTower)
    assert network.model.width == 9
    vectors = TwoTower(preset="tiny", text="vectors", fields={"image": IMAGE, "text": VECTORS})
    assert vectors.model.width == 12


def test_backbones_of_timm_bring_their_pictures():
    pytest.importorskip("timm")
    tower = TimmEncoder("resnet10t")
    network = TwoTower(tower=tower, fields={"image": IMAGE})
    assert network.settings.size == (176, 176)
    small = TwoTower(tower=copy.deepcopy(tower), image=ImageOptions(resize="none"), fields={"image": IMAGE}).eval()
    assert small(torch.randn(2, 3, 16, 16))["embeddings"]["image"].shape == (2, 512)


def test_what_does_not_fit_is_told():
    with pytest.raises(ConfigError, match="needs an image tower; name one, or a 'preset'"):
        TwoTower(text=TEXT)
    with pytest.raises(ConfigError, match="modality 'text', this model reads image"):
        TwoTower(tower=cnn(), fields={"image": IMAGE, "caption": BYTES})
    with pytest.raises(ConfigError, match=r"expected raw text as bytes.*text: vectors"):
        TwoTower(tower=cnn(), text=TEXT, fields={"image": IMAGE, "text": VECTORS})
    with pytest.raises(ConfigError, match="expected bytes, clip or a folder"):
        TwoTower(tower=cnn(), text=TextOptions("clap"))
    with pytest.raises(ConfigError, match="multiple of heads = 3"):
        TwoTower(tower=cnn(), text=TextOptions(width=16, heads=3))
    with pytest.raises(ConfigError, match="number of classes is not known"):
        TwoTower(tower=cnn(), classifier="new")
    with pytest.raises(ConfigError, match="expected a divisor of image_size = 16, found 5"):
        VitEncoder(16, 5)
    with pytest.raises(ConfigError, match="one number or 2, one a layer"):
        VitEncoder(16, 8, 16, 2, [2])
