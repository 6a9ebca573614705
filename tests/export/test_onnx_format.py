"""ONNX files give what PyTorch gives, for any number of rows; a file that does not is never written."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from moekd.errors import ConfigError, DataError, ModelError
from moekd.export import export, load_student
from moekd.export.onnx_format import write_part
from moekd.export.parts import Part

from .students import NAMES, write_student


@pytest.fixture(scope="module")
def folder(clip_run):
    return export(clip_run, "onnx", clip_run / "onnx")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    run = write_student(
        tmp_path_factory.mktemp("small"),
        "mlp",
        ["vector"],
        {"in_features": 12, "hidden": [8]},
        {"vector": {"modality": "vector", "shape": [12], "dtype": "float32"}},
        title="Tiny",
    )
    return run, export(run, "onnx", opset=21, int8=True)


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_towers_equal_the_student(clip_run, folder):
    student, generator = load_student(clip_run), torch.Generator().manual_seed(1)
    texts = ["a red apple", "two cats, and a dog", "rain"]
    ids, _ = student.texts["caption"](texts)
    image_encoder, text_encoder = session(folder / "image_encoder.onnx"), session(folder / "text_encoder.onnx")
    for rows in (1, 2, 5):
        image = torch.randn(rows, 3, 20, 20, generator=generator)
        with torch.no_grad():
            said = student(image, ["a"] * rows)
            text = student.encode_text(ids, ids != 0)
        embeds, logits = image_encoder.run(["image_embeds", "logits"], {"image": image.numpy()})
        np.testing.assert_allclose(embeds, said["embeddings"]["image"].numpy(), atol=1e-4)
        np.testing.assert_allclose(logits, said["logits"].numpy(), atol=1e-3)
    found = text_encoder.run(None, {"input_ids": ids.numpy()})[0]
    np.testing.assert_allclose(found, text.numpy(), atol=1e-4)


def test_class_vectors_are_the_zero_shot_classifier(folder):
    said = json.loads((folder / "config.json").read_text())
    vectors = np.load(folder / "class_vectors.npy", allow_pickle=False)
    assert vectors.shape == (len(NAMES), 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    image = np.random.default_rng(0).standard_normal((2, 3, 20, 20), dtype=np.float32)
    embeds, logits = session(folder / "image_encoder.onnx").run(["image_embeds", "logits"], {"image": image})
    unit = F.normalize(torch.from_numpy(embeds), dim=1).numpy()
    np.testing.assert_allclose(said["scale"]["logit_scale"] * unit @ vectors.T, logits, atol=1e-4)


def test_the_tokenizer_beside_the_files_gives_the_ids(clip_run, folder):
    contract = load_student(clip_run).texts["caption"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    for text in ("a red apple", "Two umbrellas, in the rain", "it's 42 o'clock!", "word " * 30):
        ids, mask = contract([text])
        assert tokenizer(text, truncation=True)["input_ids"] == ids[0][mask[0]].tolist()
    said = json.loads((folder / "config.json").read_text())["tokenizer"]
    assert said == {"kind": "transformers", "folder": "tokenizer", "context": 10, "padding": "context", "pad_id": 0}


def test_files_say_what_they_take(folder, small):
    run, written = small
    said = json.loads((written / "config.json").read_text())
    assert set(said["files"]) == {"student.onnx", "student.int8.onnx"}
    assert said["files"]["student.onnx"]["max_difference"] <= 1e-4
    assert said["files"]["student.onnx"]["inputs"] == ["vector"]
    model = onnx.load(written / "student.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["class_names"]) == NAMES
    assert json.loads(metadata["fields"])["vector"]["shape"] == [12]
    assert metadata["title"] == "Tiny"
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 21
    assert str(run) not in str(model)
    card = (written / "README.md").read_text()
    assert "onnxruntime.InferenceSession" in card
    assert "image_encoder" in (folder / "README.md").read_text()


def test_eight_bits_are_close(small):
    run, written = small
    vector = torch.randn(4, 12)
    expected = load_student(run)(vector).detach().numpy()
    found = session(written / "student.int8.onnx").run(None, {"vector": vector.numpy()})[0]
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    assert not np.array_equal(found, expected)


class Liar(nn.Module):
    """Gives other numbers while it is traced than when it is run."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, vector):
        said = self.linear(vector)
        return said + 0.01 if torch.compiler.is_exporting() else said


def test_a_file_that_differs_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"Liar: onnxruntime differs from PyTorch by \d\.\d+e-0\d"):
        write_part(Part("student", Liar().eval(), {"vector": torch.zeros(3, 3)}), tmp_path / "x.onnx", None, {})


class DataDependent(nn.Module):
    def forward(self, vector):
        return vector if vector.sum() > 0 else -vector


def test_what_can_not_be_traced_is_named(tmp_path):
    part = Part("student", DataDependent(), {"vector": torch.ones(3, 3)})
    with pytest.raises(ModelError, match="DataDependent can't be written as ONNX"):
        write_part(part, tmp_path / "x.onnx", None, {})
    assert list(tmp_path.iterdir()) == []


def test_mistakes_leave_nothing_behind(clip_run, small, tmp_path):
    run, written = small
    with pytest.raises(ConfigError, match="opset: expected 18 to"):
        export(run, "onnx", tmp_path / "x", opset=9)
    with pytest.raises(DataError, match="exists already"):
        export(run, "onnx", written)
    with pytest.raises(ConfigError, match="options of the format onnx"):
        export(run, "safetensors", tmp_path / "x", int8=True)
    assert list(tmp_path.iterdir()) == []
