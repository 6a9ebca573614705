"""The project's own two-tower students in the formats of open_clip and transformers."""

from __future__ import annotations

import open_clip
import pytest
import torch
import transformers

from moekd.errors import ConfigError, ModelError
from moekd.export import build_network, export, load_student
from moekd.export.parts import parts_of
from moekd.export.torch_program import write_program

from .students import FIELDS, save_tokenizer, write_student

VIT = {"kind": "vit_encoder", "image_size": 20, "patch_size": 10, "width": 16, "layers": 2, "heads": 2, "pool": "cls"}
TEXT = {"tokenizer": "clip", "context": 12, "width": 16, "layers": 1, "heads": 4, "causal": True, "pool": "last"}
TEXTS = ["a red apple", "two cats, and a dog", "rain " * 20]
OWN = {"tower": VIT, "text": TEXT, "width": 8}
QUICK = {"activation": "quick_gelu"}


def two_tower(folder, **options):
    return write_student(folder, "two_tower", ["image", "caption"], options)


def open_clip_embeddings(folder, pixels):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        return model.eval().encode_image(pixels), model.encode_text(tokenizer(TEXTS))


@pytest.mark.parametrize(
    "options",
    [
        OWN | {"tower": VIT | {"pre_norm": True, "epsilon": 1e-3}},
        OWN | {"tower": VIT | QUICK, "text": TEXT | QUICK, "sigmoid": True},
        OWN | {"text": TEXT | {"causal": False, "see_padding": True}},
        OWN | {"tower": {"kind": "timm_encoder", "model": "test_resnet"}},
    ],
    ids=["vit", "quick, sigmoid", "both directions", "timm"],
)
def test_open_clip_gives_the_embeddings(tmp_path, options):
    run = two_tower(tmp_path / "run", **options)
    student = load_student(run)
    pixels = torch.randn(3, 3, *student.settings.size)
    image, text = open_clip_embeddings(export(run, "open_clip"), pixels)
    with torch.no_grad():
        torch.testing.assert_close(image, student.encode("image", pixels), rtol=0, atol=1e-5)
        torch.testing.assert_close(text, student.embed_texts(TEXTS), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (OWN | {"tower": VIT | {"pre_norm": True}}, "CLIPModel"),
        (OWN | {"tower": {"kind": "timm_encoder", "model": "test_resnet"}}, "VisionTextDualEncoderModel"),
    ],
)
def test_transformers_gives_the_embeddings(tmp_path, options, kind):
    run = two_tower(tmp_path / "run", **options)
    folder, student = export(run, "transformers"), load_student(run)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    assert type(model).__name__ == kind
    pixels = torch.randn(3, 3, *student.settings.size)
    found = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, student.encode("image", pixels), rtol=0, atol=1e-5)


def test_a_tokenizer_of_transformers_goes_along(tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    text = TEXT | {"tokenizer": str(tmp_path / "tokenizer")}
    run = two_tower(tmp_path / "run", **(OWN | {"text": text}))
    folder = export(run, "open_clip")
    assert (folder / "tokenizer.json").is_file()
    _, found = open_clip_embeddings(folder, torch.zeros(1, 3, 20, 20))
    with torch.no_grad():
        torch.testing.assert_close(found, load_student(run).embed_texts(TEXTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "tiny"}, "texts as bytes"),
        (OWN | {"text": TEXT | {"pool": "mean"}}, "mean of the tokens"),
        (OWN | {"text": TEXT | {"causal": False}}, "leaves out the padding"),
        (OWN | {"tower": VIT | {"pool": "mean"}}, "mean of the patches"),
        (OWN | {"tower": VIT | QUICK}, "different activations"),
        (OWN | {"tower": VIT | {"hidden": [8, 16]}}, "layers of its image tower have different sizes"),
        (OWN | {"tower": VIT | {"head_width": 4}}, "2 x 4 features, not 16"),
        (OWN | {"tower": {"kind": "cnn_encoder", "channels": [4, 8]}}, "no image tower like CnnEncoder"),
        (OWN | {"classifier": "new"}, "a classifier of its own"),
        (OWN | {"image": {"size": 20, "resize": "shortest", "scale_to": 24}}, "scaled to 24 before the cut"),
    ],
)
def test_refusals_have_a_reason(tmp_path, options, words):
    run = two_tower(tmp_path / "run", **options)
    for format in ("open_clip", "transformers")[: 1 if "image" in options else 2]:
        with pytest.raises(ModelError, match=f"can't express this student: .*{words}.*formats that can: onnx"):
            export(run, format)
    assert list((run / "export").iterdir()) == []


def test_padding_is_seen_only_where_every_text_is_filled_up():
    document = {"class_names": ["a"], "inputs": ["image", "caption"], "fields": FIELDS}
    text = TEXT | {"tokenizer": "bytes", "see_padding": True}
    with pytest.raises(ConfigError, match="needs the tokenizer 'clip', found 'bytes'"):
        build_network({"kind": "two_tower", "options": OWN | {"text": text}, "context": {"num_classes": 1}}, document)


def test_programs_of_towers_that_read_bytes(tmp_path):
    text = {"width": 16, "layers": 1, "heads": 2, "context": 24}
    run = two_tower(tmp_path / "run", tower={"kind": "cnn_encoder", "channels": [4, 8]}, text=text, width=8)
    student = load_student(run)
    parts = {part.name: part for part in parts_of(student, ["image", "caption"], FIELDS)}
    assert list(parts) == ["image_encoder", "text_encoder"]
    programs = {
        name: torch.export.load(write_program(part, tmp_path / f"{name}.pt2")).module() for name, part in parts.items()
    }
    image = torch.randn(5, 3, 20, 20)
    with torch.no_grad():
        expected = student.embed("image", image)
        torch.testing.assert_close(programs["image_encoder"](image)["image_embeds"], expected)
        for texts in (["a"], ["two cats", "a dog with a long name", "x", "y"]):
            ids, mask = student.texts["caption"](texts)
            found = programs["text_encoder"](ids, mask.long())["text_embeds"]
            torch.testing.assert_close(found, student.embed_texts(texts))
