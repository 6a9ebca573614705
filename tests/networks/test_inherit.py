"""Weights of a small tower from a larger one: nothing changes at equal sizes, and what is cut is what the rule says."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from moekd.errors import ConfigError
from moekd.networks import CnnEncoder, InheritOptions, OpenClip, TextOptions, TwoTower, VitEncoder
from moekd.networks.inherit import TowerWeights, pick, pick_layers, shrink
from moekd.networks.inherit_source import take_over
from moekd.networks.tower_formats import read_tower, write_tower

open_clip = pytest.importorskip("open_clip")
TEXTS = ["red apple", "an umbrella with rain drops"]


def sizes(layers=4, width=32, heads=4, text_layers=3, text_width=16, text_heads=2, embed=12):
    return {
        "embed_dim": embed,
        "vision_cfg": {
            "image_size": 16,
            "layers": layers,
            "width": width,
            "head_width": width // heads,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 12,
            "vocab_size": 49408,
            "width": text_width,
            "heads": text_heads,
            "layers": text_layers,
        },
    }


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A folder with a model of open_clip whose every weight counts."""
    path = tmp_path_factory.mktemp("larger")
    config = {"model_cfg": sizes(), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: value + 0.05 * torch.randn(value.shape, generator=generator)
        for key, value in open_clip.CLIP(**sizes()).state_dict().items()
    }
    save_file(weights, path / "open_clip_model.safetensors")
    return path


def own(layers=4, width=32, heads=4, text_layers=3, text_width=16, text_heads=2, embed=12, **options):
    tower = VitEncoder(
        16, 8, width, layers, heads, pool="cls", pre_norm=True, head_width=options.pop("head_width", None)
    )
    text = TextOptions("clip", 12, text_width, text_layers, text_heads, causal=True, pool="last")
    return TwoTower(tower=tower, text=text, width=embed, **options).eval()


def said(network, pictures):
    with torch.no_grad():
        return network(pictures, TEXTS)


def test_equal_sizes_give_equal_embeddings(larger):
    theirs, mine = OpenClip(str(larger)).eval(), own(inherit=InheritOptions(str(larger)))
    pictures = torch.rand(3, 3, 16, 16)
    expected, found = said(theirs, pictures), said(mine, pictures)
    for modality in ("image", "text"):
        torch.testing.assert_close(
            found["embeddings"][modality], expected["embeddings"][modality], rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(found["logit_scale"], expected["logit_scale"][:1].expand(3))
    for rule in ("first", "magnitude"):
        again = own(inherit=InheritOptions(str(larger), layers="first", width=rule))
        torch.testing.assert_close(said(again, pictures)["embeddings"], found["embeddings"])


def test_dropping_layers_that_do_nothing_changes_nothing(larger):
    theirs = OpenClip(str(larger)).eval()
    with torch.no_grad():
        image, text = theirs.model.visual.transformer.resblocks, theirs.model.transformer.resblocks
        for blocks, gone in ((image, (1, 2)), (text, (1,))):
            for index in gone:
                for layer in (blocks[index].attn.out_proj, blocks[index].mlp.c_proj):
                    layer.weight.zero_()
                    layer.bias.zero_()
    mine, pictures = own(layers=2, text_layers=2), torch.rand(2, 3, 16, 16)
    for modality in ("image", "text"):
        cut = shrink(
            read_tower(theirs.model, modality, ""), read_tower(mine.model, modality, ""), embedding=torch.arange(12)
        )
        write_tower(mine.model, modality, cut, "")
    expected = said(theirs, pictures)["embeddings"]
    torch.testing.assert_close(said(mine, pictures)["embeddings"], expected, rtol=1e-4, atol=1e-5)


def test_silent_channels_heads_and_neurons_are_the_ones_that_go(larger):
    """A tower that is wider by heads and neurons whose outputs are 0 is cut back to what it was."""
    small = own(text_layers=1).model
    wide = own(text_layers=1, heads=6, head_width=8).model
    base = read_tower(small, "image", "")
    padded = {name: torch.zeros_like(t) for name, t in read_tower(wide, "image", "").tensors.items()}
    keep = torch.tensor([0, 2, 3, 5])
    for name, tensor in base.tensors.items():
        if name.endswith(("attn.qkv.weight", "attn.qkv.bias")):
            padded[name].unflatten(0, (3, 6, 8))[:, keep] = tensor.unflatten(0, (3, 4, 8))
        elif name.endswith("attn.proj.weight"):
            padded[name].unflatten(1, (6, 8))[:, keep] = tensor.unflatten(1, (4, 8))
        else:
            padded[name] = tensor
    cut = shrink(TowerWeights(padded, (6,) * 4), base, width="magnitude", embedding=torch.arange(12))
    assert cut.keys() == base.tensors.keys()
    for name, tensor in base.tensors.items():
        assert torch.equal(cut[name], tensor), name


def test_picks():
    assert pick_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert pick_layers(12, 3, "first") == [0, 1, 2]
    assert pick_layers(5, 5) == [0, 1, 2, 3, 4]
    assert pick_layers(5, 1) == [0]
    assert pick("x", 8, 4, "uniform").tolist() == [0, 2, 4, 6]
    assert pick("x", 8, 3, "first").tolist() == [0, 1, 2]
    assert pick("x", 4, 2, "magnitude", torch.tensor([1.0, 4.0, 2.0, 3.0])).tolist() == [1, 3]
    with pytest.raises(ConfigError, match="the student has 9 layers, the larger model 8; it can only be smaller"):
        pick_layers(8, 9)


@pytest.mark.parametrize("rule", ["uniform", "first", "magnitude"])
def test_a_smaller_student_starts_with_a_part_of_the_weights(larger, rule):
    options = InheritOptions(str(larger), width=rule)
    mine = own(2, 16, 2, 2, 8, 1, 6, inherit=options)
    theirs = OpenClip(str(larger)).model
    embedding = mine.model.text.tokens.weight
    columns = theirs.token_embedding.weight.detach()
    places = [int((columns == column[:, None]).all(dim=0).nonzero()) for column in embedding.T]
    assert places == sorted(set(places))
    if rule == "uniform":
        assert places == list(range(0, 16, 2))
    assert said(mine, torch.rand(2, 3, 16, 16))["embeddings"]["image"].shape == (2, 6)


def test_a_student_of_open_clip_inherits_too(larger):
    student = OpenClip(sizes(2, 16, 2, 2, 8, 1, 6), inherit=InheritOptions(str(larger))).eval()
    mine = own(2, 16, 2, 2, 8, 1, 6, inherit=InheritOptions(str(larger)), image=None)
    assert torch.equal(student.model.visual.conv1.weight, mine.model.image.patches.weight)
    pictures = torch.rand(2, 3, 16, 16)
    image = student.encode("image", pictures)
    torch.testing.assert_close(image, mine.encode("image", pictures), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student.embed_texts(TEXTS), mine.embed_texts(TEXTS), rtol=1e-4, atol=1e-5)


def test_a_clip_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    part = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = part | {"vocab_size": 49408, "max_position_embeddings": 12, "hidden_act": "gelu"}
    vision = part | {"image_size": 16, "patch_size": 8, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    mine = own(2, 16, 2, 2, 16, 2, 12, inherit=InheritOptions(str(tmp_path)))
    pictures, ids = torch.rand(2, 3, 16, 16), mine.tokens.encode(TEXTS)
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pictures)
        words = model.get_text_features(input_ids=ids[0], attention_mask=ids[1].long())
    image, words = (value if isinstance(value, torch.Tensor) else value.pooler_output for value in (image, words))
    torch.testing.assert_close(mine.encode("image", pictures), image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.encode_text(*ids), words, rtol=1e-4, atol=1e-5)


def test_a_backbone_of_timm_gives_its_image_tower(tmp_path):
    timm = pytest.importorskip("timm")
    options = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    tower = VitEncoder(16, 8, 16, 3, 2, pool="cls", epsilon=1e-6)
    student = TwoTower(tower=tower).eval()
    write_tower(student.model, "image", read_tower(model, "image", "timm").tensors, "")
    pictures = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(student.model.image(pictures), model(pictures), rtol=1e-3, atol=1e-4)


def test_other_resolutions_get_interpolated_positions(larger):
    tower = VitEncoder(32, 8, 32, 4, 4, pool="cls", pre_norm=True)
    student = TwoTower(tower=tower, width=12, inherit=InheritOptions(str(larger), towers=["image"]))
    theirs = OpenClip(str(larger)).model.visual.positional_embedding
    positions = student.model.image.positions
    assert positions.shape == (17, 32)
    assert torch.equal(positions[0], theirs[0])
    torch.testing.assert_close(positions[1:].mean(0), theirs[1:].mean(0), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_inherited_is_told(larger, tmp_path):
    source = InheritOptions(str(larger))
    with pytest.raises(ConfigError, match=r"text tower of .* has pool last, the student mean"):
        TwoTower(
            tower=VitEncoder(16, 8, 32, 4, 4, pool="cls", pre_norm=True),
            text=TextOptions("clip", 12, 16, 3, 2, causal=True),
            inherit=source,
        )
    with pytest.raises(ConfigError, match="image tower: only one of the two towers has 'pre_norm'"):
        TwoTower(
            tower=VitEncoder(16, 8, 32, 4, 4, pool="cls"),
            width=12,
            inherit=InheritOptions(str(larger), towers=["image"]),
        )
    with pytest.raises(ConfigError, match="the embedding: the student has 13 channels"):
        own(embed=13, inherit=source)
    with pytest.raises(ConfigError, match="image tower: the student has 5 layers, the larger model 4"):
        own(5, inherit=source)
    with pytest.raises(ConfigError, match=r"patches.weight: \(32, 3, 8, 8\) of the larger model"):
        TwoTower(
            tower=VitEncoder(16, 4, 32, 4, 4, pool="cls", pre_norm=True),
            width=12,
            inherit=InheritOptions(str(larger), towers=["image"]),
        )
    with pytest.raises(ConfigError, match="no model of open_clip, transformers, timm or moekd"):
        own(inherit=InheritOptions(str(tmp_path)))
    with pytest.raises(ConfigError, match="the student has no image tower that is a transformer"):
        TwoTower(tower=CnnEncoder((8,)), inherit=InheritOptions(str(larger), towers=["image"]))


def test_a_student_of_an_earlier_run(larger, tmp_path):
    """Stages: 4 layers, then 2 of them, each from the student before."""
    first = own(inherit=InheritOptions(str(larger)))
    folder = tmp_path / "run" / "student"
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in first.state_dict().items()}, folder / "model.safetensors")
    tower = {
        "kind": "vit_encoder",
        "image_size": 16,
        "patch_size": 8,
        "width": 32,
        "layers": 4,
        "heads": 4,
        "pool": "cls",
        "pre_norm": True,
    }
    text = {"tokenizer": "clip", "context": 12, "width": 16, "layers": 3, "heads": 2, "causal": True, "pool": "last"}
    network = {"kind": "two_tower", "options": {"tower": tower, "text": text, "width": 12, "preset": None}}
    fields = {"image": {"modality": "image", "shape": [3, 16, 16], "dtype": "float32"}}
    document = {"format": "moekd-student", "network": network, "inputs": ["image"], "fields": fields}
    (folder / "config.json").write_text(json.dumps(document))
    second = own(layers=2)
    take_over(second.model, InheritOptions(str(tmp_path / "run")))
    assert torch.equal(second.model.image.blocks[1].fc1.weight, first.model.image.blocks[3].fc1.weight)
