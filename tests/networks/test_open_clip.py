"""Models of open_clip: the adapter gives what the library itself gives, and refuses what does not fit."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from moekd.errors import ConfigError, ModelError
from moekd.networks import NETWORKS, ImageOptions, OpenClip, TipAdapterOptions, ZeroShotOptions

open_clip = pytest.importorskip("open_clip")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
FIELDS = {"image": {"modality": "image", "shape": (3, 20, 20), "dtype": "float32"}}
BYTES = {"modality": "text", "shape": (40,), "dtype": "int64", "tokenizer": {"bytes": True, "lower": False}}
TEXTS = ["red apple", "Grün", "an umbrella with rain drops"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as open_clip writes it: config, preprocessing and weights."""
    path = tmp_path_factory.mktemp("open_clip")
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    weights = {key: value.contiguous() for key, value in open_clip.CLIP(**TINY).state_dict().items()}
    save_file(weights, path / "open_clip_model.safetensors")
    return path


def byte_ids(texts):
    ids = torch.zeros(len(texts), 40, dtype=torch.int64)
    for row, text in enumerate(texts):
        data = torch.tensor(list(text.encode()))
        ids[row, : len(data)] = data + 1
    return ids


def test_equals_the_model_of_the_library(folder):
    ours = OpenClip(str(folder)).eval()
    theirs = open_clip.create_model(f"local-dir:{folder}")
    raw = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        said = ours(raw, TEXTS)
        image = theirs.eval().encode_image((raw - 0.5) / 0.5)
        text = theirs.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS))
    torch.testing.assert_close(said["embeddings"]["image"], image)
    torch.testing.assert_close(said["embeddings"]["text"], text)
    torch.testing.assert_close(said["logit_scale"], theirs.logit_scale.exp().expand(3))
    assert ours.settings.resize == "squash"
    assert "logits" not in said


def test_raw_texts_and_own_ids_give_the_same(folder):
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    raw = OpenClip(str(folder), fields={"caption": BYTES}).eval()
    with torch.no_grad():
        expected = raw(byte_ids(TEXTS))["embeddings"]["text"]
        own = OpenClip(str(folder)).eval()
        image = torch.rand(3, 3, 32, 32)
        assert torch.equal(own(image, tokens)["embeddings"]["text"], expected)
        assert torch.equal(own(image, TEXTS)["embeddings"]["text"], expected)


def test_ids_are_taken_from_the_same_tokenizer_only(folder):
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    probe = {text: [49406, *tokenizer.encode(text), 49407] for text in TEXTS[:2]}
    source = {"context": 10, "pad_id": 49407, "probe": probe}
    field = {"modality": "text", "shape": (10,), "dtype": "int64", "tokenizer": source}
    network = OpenClip(str(folder), fields={"caption": field}).eval()
    padded = torch.full((2, 10), 49407)
    for row, ids in enumerate(probe.values()):
        padded[row, : len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        found = network(padded)["embeddings"]["text"]
        expected = OpenClip(str(folder)).eval()(torch.rand(2, 3, 32, 32), TEXTS[:2])["embeddings"]["text"]
    torch.testing.assert_close(found, expected)
    foreign = field | {"tokenizer": source | {"probe": {"red apple": [101, 5, 102]}}}
    with pytest.raises(ConfigError, match="are not this model's: 'red apple'"):
        OpenClip(str(folder), fields={"caption": foreign})
    long = field | {"tokenizer": source | {"context": 77}}
    with pytest.raises(ConfigError, match="up to 77 tokens, the model takes 12"):
        OpenClip(str(folder), fields={"caption": long})


def test_fields_that_it_cannot_read_are_refused(folder):
    vectors = {"modality": "text", "shape": (384,), "dtype": "float32"}
    with pytest.raises(ConfigError, match="names its tokenizer, found float32 \\[384\\]"):
        OpenClip(str(folder), fields={"text": vectors})
    with pytest.raises(ConfigError, match="modality 'audio', this model reads image and text"):
        OpenClip(str(folder), fields={"sound": {"modality": "audio"}})
    with pytest.raises(ConfigError, match="second field"):
        OpenClip(str(folder), fields={"a": FIELDS["image"], "b": FIELDS["image"]})
    with pytest.raises(ModelError, match="reads 1 inputs"):
        OpenClip(str(folder), fields=FIELDS)(torch.rand(1, 3, 20, 20), TEXTS)


def test_class_names_make_a_classifier(folder):
    names, templates = ["cat", "dog", "tall tree"], ["a photo of a {}.", "{} drawn"]
    options = ZeroShotOptions(templates)
    network = OpenClip(str(folder), zero_shot=options, class_names=names, fields=FIELDS).eval()
    raw = torch.rand(4, 3, 20, 20)
    with torch.inference_mode():
        said = network(raw)
        texts = [[template.format(name) for template in templates] for name in names]
        vectors = torch.stack(
            [
                F.normalize(F.normalize(network.encode_text(*network._prompt_tokens(of)), dim=1).mean(dim=0), dim=0)
                for of in texts
            ]
        )
        expected = network.model.logit_scale.exp() * F.normalize(said["embeddings"]["image"], dim=1) @ vectors.T
    torch.testing.assert_close(said["logits"], expected)
    assert not any("vectors" in key for key in network.state_dict())


def test_class_vectors_follow_the_weights(folder):
    network = OpenClip(str(folder), zero_shot=ZeroShotOptions(), class_names=["cat", "dog"], fields=FIELDS).eval()
    raw = torch.rand(2, 3, 20, 20)
    before = network(raw)["logits"]
    kept = network.zero_shot.vectors
    assert network(raw)["logits"].equal(before)
    assert network.zero_shot.vectors is kept
    weights = {key: value + 0.05 * torch.randn_like(value) for key, value in network.state_dict().items()}
    network.load_state_dict(weights)
    after = network(raw)["logits"]
    assert not torch.allclose(before, after)
    network.train()
    said = network(raw)["logits"]
    said.sum().backward()
    assert network.model.token_embedding.weight.grad is not None


def test_labelled_pictures_vote_beside_the_names(folder):
    made = {
        entries: OpenClip(
            str(folder),
            2,
            zero_shot=ZeroShotOptions(),
            tip_adapter=None if entries is None else TipAdapterOptions(entries),
            class_names=["cat", "dog"],
            fields=FIELDS,
        ).eval()
        for entries in (None, 3)
    }
    raw, voting = torch.rand(2, 3, 20, 20), made[3]
    plain, said = made[None](raw), voting(raw)
    assert voting.tip_adapter.keys.shape == (3, 16)
    assert torch.equal(said["logits"], plain["logits"])
    voting.tip_adapter.adopt(said["embeddings"]["image"], torch.tensor([1, 0]))
    added = voting.tip_adapter(said["embeddings"]["image"])
    torch.testing.assert_close(voting(raw)["logits"], plain["logits"] + added)
    assert added.amin() > 0


def test_votes_of_a_model_that_is_a_description_alone():
    network = OpenClip(
        TINY,
        2,
        zero_shot=ZeroShotOptions(),
        tip_adapter=TipAdapterOptions(3),
        class_names=["cat", "dog"],
        fields=FIELDS,
        loading="meta",
    ).eval()
    assert network(torch.rand(2, 3, 20, 20))["logits"].shape == (2, 2)


def test_without_logits_in_training(folder):
    options = ZeroShotOptions(in_training=False)
    network = OpenClip(str(folder), zero_shot=options, class_names=["cat", "dog"], fields=FIELDS)
    assert "logits" not in network.train()(torch.rand(2, 3, 20, 20))
    assert "logits" in network.eval()(torch.rand(2, 3, 20, 20))
    network.requires_grad_(False)
    assert "logits" in network.train()(torch.rand(2, 3, 20, 20))


def test_an_architecture_in_the_config_and_in_a_file(folder, tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    weights = str(folder / "open_clip_model.safetensors")
    inline, filed = OpenClip(TINY, pretrained=weights), OpenClip(str(path), pretrained=weights)
    for network in (inline, filed):
        assert torch.equal(network.model.visual.conv1.weight, OpenClip(str(folder)).model.visual.conv1.weight)
    assert inline.settings.mean[0] == pytest.approx(0.48145466)
    assert OpenClip(TINY, image=ImageOptions(mean=[0.0] * 3)).settings.mean == (0.0, 0.0, 0.0)


def test_mistakes_in_the_model_are_told(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean .*ViT-B-32"):
        OpenClip("ViT-B-322")
    with pytest.raises(ConfigError, match="'laion2b' is no tag of 'ViT-B-32'"):
        OpenClip("ViT-B-32", pretrained="laion2b")
    with pytest.raises(ConfigError, match="name the commit"):
        OpenClip("hf-hub:owner/name", revision="main")
    with pytest.raises(ConfigError, match="needs embed_dim"):
        OpenClip({"vision_cfg": {}, "text_cfg": {}})
    pickled = tmp_path / "weights.pt"
    pickled.write_bytes(b"x")
    with pytest.raises(ConfigError, match="pickles"):
        OpenClip(TINY, pretrained=str(pickled))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    with pytest.raises(ConfigError, match=r"has no \.safetensors file"):
        OpenClip(str(tmp_path))
    wrong = TINY | {"embed_dim": 8}
    with pytest.raises(ConfigError, match="size mismatch"):
        OpenClip(wrong, pretrained=str(folder / "open_clip_model.safetensors"))


def test_the_root_logger_is_left_alone(folder):
    import logging

    before = list(logging.getLogger().handlers)
    OpenClip(str(folder))
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision_prepares_pictures_in_float32(folder, dtype):
    from moekd.teachers import Teacher

    def teacher(dtype):
        network = OpenClip(str(folder), zero_shot=ZeroShotOptions(), class_names=["cat", "dog"], fields=FIELDS)
        return Teacher(network, ["image"], dtype=dtype)

    batch = {"image": torch.rand(3, 3, 20, 20)}
    found, expected = teacher(dtype)(batch), teacher(torch.float32)(batch)
    assert found.embeddings["image"].dtype == dtype
    assert found.logits.dtype == torch.float32
    torch.testing.assert_close(found.logits, expected.logits, rtol=0.05, atol=0.1)


def test_it_is_a_kind():
    assert NETWORKS.get("open_clip") is OpenClip
    assert {"model", "pretrained", "zero_shot", "image"} <= set(NETWORKS.parameters("open_clip"))
    assert not {"class_names", "fields"} & set(NETWORKS.parameters("open_clip"))
