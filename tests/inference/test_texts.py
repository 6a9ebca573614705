"""Students with a text tower: any labels, pictures for a text, embeddings; and students that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import torch.nn.functional as F

import moekd
from moekd.errors import ConfigError, DataError, ModelError
from moekd.export import load_student
from moekd.inference import Embeddings, Predictor, embed, predict, read_input, search

from .students import CAPTION, IMAGE, NAMES, TOWER, VECTOR, pictures, two_towers, write


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a tower for pictures and one for texts."""
    return two_towers(tmp_path_factory.mktemp("reader") / "s")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of open_clip, which prepares its own pictures and tokens."""
    sizes = {"layers": 1, "width": 16}
    architecture = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "head_width": 8, **sizes},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "heads": 2, **sizes},
    }
    inputs = {"image": IMAGE, "caption": CAPTION}
    return write(tmp_path_factory.mktemp("clip") / "s", "open_clip", {"model": architecture}, inputs)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that classifies pictures."""
    options = {"channels": [4], "hidden": 8}
    return write(tmp_path_factory.mktemp("classifier") / "s", "small_cnn", options, {"image": IMAGE})


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven pictures in a folder and one below."""
    return pictures(tmp_path_factory.mktemp("gallery"), 7)


def unit(network: Any, files: list[Path]) -> torch.Tensor:
    """Return the embeddings of files at length 1, straight from the network."""
    with torch.no_grad():
        batch = torch.stack([read_input(path, IMAGE) for path in files])
        found = network(batch, ["a"] * len(files))["embeddings"]["image"]
    return F.normalize(found, dim=1)


def by_hand(network: Any, labels: list[str], templates: list[str]) -> torch.Tensor:
    """Return class vectors as CLIP makes them, one prompt at a time."""
    rows = []
    with torch.no_grad():
        for label in labels:
            parts = [F.normalize(network.embed_texts([t.replace("{}", label)])[0], dim=0) for t in templates]
            rows.append(F.normalize(torch.stack(parts).mean(dim=0), dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("templates", [["{}"], ["a photo of a {}.", "the {} in snow"]])
@pytest.mark.parametrize("student", ["reader", "clip"])
def test_any_labels(student: str, gallery: list[Path], templates: list[str], request: pytest.FixtureRequest) -> None:
    reader: Path = request.getfixturevalue(student)
    labels = ["a red apple", "日本", "🙂", "dog"]
    network: Any = load_student(reader)
    scale = network.scale_and_bias()[0].item()
    expected = (scale * unit(network, gallery) @ by_hand(network, labels, templates).T).softmax(dim=1)
    found = predict(reader, gallery, top=9, batch_size=3, labels=labels, templates=templates)
    for row, one, path in zip(expected, found, gallery, strict=True):
        assert one.path == str(path)
        assert dict(one.classes) == pytest.approx(dict(zip(labels, row.tolist(), strict=True)), abs=1e-6)
        assert [p for _, p in one.classes] == sorted((p for _, p in one.classes), reverse=True)


def test_without_labels_the_classes_are_asked_for(reader: Path, gallery: list[Path]) -> None:
    predictor = Predictor(reader)
    assert (predictor.reads_texts, predictor.classifies, predictor.embeds) == (True, False, True)
    assert predict(predictor, gallery[:1]) == predict(predictor, gallery[:1], labels=NAMES)
    assert {name for name, _ in predict(predictor, gallery[:1])[0].classes} == set(NAMES)


def test_a_zero_shot_student_keeps_its_own_prompts(tmp_path: Path, gallery: list[Path]) -> None:
    folder = two_towers(tmp_path / "s", zero_shot={"templates": ["the {} in snow"]})
    predictor = Predictor(folder)
    assert predictor.classifies
    assert predictor.templates == ("the {} in snow",)
    own = dict(predict(predictor, gallery[:1])[0].classes)
    assert own == pytest.approx(dict(predict(predictor, gallery[:1], labels=NAMES)[0].classes), abs=1e-6)
    other = predict(predictor, gallery[:1], labels=NAMES, templates=["{}"])
    assert dict(other[0].classes) != pytest.approx(own, abs=1e-6)


def test_pictures_for_a_text(reader: Path, gallery: list[Path]) -> None:
    network: Any = load_student(reader)
    texts = ["a dog", "rain over the café"]
    with torch.no_grad():
        cosines = F.normalize(network.embed_texts(texts), dim=1) @ unit(network, sorted(gallery)).T
    found = search(reader, texts, [gallery[0].parent], top=4, batch_size=2)
    for text, row, match in zip(texts, cosines, found, strict=True):
        assert match.text == text
        best = row.argsort(descending=True)[:4]
        assert [path for path, _ in match.pictures] == [str(sorted(gallery)[i]) for i in best]
        assert [c for _, c in match.pictures] == pytest.approx(row[best].tolist(), abs=1e-6)


def test_embeddings_can_be_written_and_read(reader: Path, gallery: list[Path], tmp_path: Path) -> None:
    network: Any = load_student(reader)
    texts = ["a dog", "naïve café"]
    found = embed(reader, gallery, texts, batch_size=2)
    assert found.image is not None and found.text is not None  # noqa: PT018
    with torch.no_grad():
        assert torch.allclose(found.text, network.embed_texts(texts), atol=1e-6)
    assert torch.allclose(F.normalize(found.image, dim=1), unit(network, gallery), atol=1e-6)
    with safetensors.safe_open(found.write(tmp_path / "a.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("image"), found.image)
        assert json.loads(file.metadata()["text"]) == texts
        assert json.loads(file.metadata()["image"]) == [str(path) for path in gallery]
    plain = json.loads(found.write(tmp_path / "a.json").read_text())
    assert [row["text"] for row in plain["texts"]] == texts
    assert torch.allclose(torch.tensor([row["embedding"] for row in plain["images"]]), found.image, atol=1e-6)
    alone = embed(reader, texts=texts)
    assert alone.image is None
    with pytest.raises(ConfigError, match=r"expected a file ending in .safetensors or .json, found 'a.pt'"):
        alone.write(tmp_path / "a.pt")


def test_a_classifier_knows_its_classes_only(classifier: Path, gallery: list[Path]) -> None:
    whole = dict(predict(classifier, gallery[:1])[0].classes)
    part = dict(predict(classifier, gallery[:1], labels=["dog", " cat ", "dog"])[0].classes)
    total = whole["dog"] + whole["cat"]
    assert part == pytest.approx({name: whole[name] / total for name in ("dog", "cat")}, abs=1e-6)
    with pytest.raises(ConfigError, match="no text tower, so it can be asked for its 3 own classes only, found 'dogs'"):
        predict(classifier, gallery, labels=["dogs"])
    with pytest.raises(ConfigError, match="no text tower that could read them"):
        predict(classifier, gallery, templates=["a {}"])
    with pytest.raises(ModelError, match="no text tower"):
        search(classifier, ["a"], gallery)
    with pytest.raises(ModelError, match="logits alone"):
        embed(classifier, gallery)


def test_a_student_with_frozen_text_vectors(tmp_path: Path, gallery: list[Path]) -> None:
    inputs = {"image": IMAGE, "text": VECTOR}
    bare = write(tmp_path / "bare", "two_tower", {"tower": TOWER, "text": "vectors"}, inputs)
    with pytest.raises(ModelError, match="neither a classifier nor a text tower"):
        predict(bare, gallery)
    found = embed(bare, gallery)
    assert found.image is not None
    assert found.image.shape == (7, 12), "the space of the text vectors"
    options = {"tower": TOWER, "text": "vectors", "classifier": "new"}
    classifies = write(tmp_path / "classifies", "two_tower", options, inputs)
    network: Any = load_student(classifies)
    batch = torch.stack([read_input(path, IMAGE) for path in gallery])
    with torch.no_grad():
        expected = network(batch, torch.zeros(7, 12))["logits"].softmax(dim=1)
    for row, one in zip(expected, predict(classifies, gallery), strict=True):
        assert dict(one.classes) == pytest.approx(dict(zip(NAMES, row.tolist(), strict=True)), abs=1e-6)
    with pytest.raises(ConfigError, match="no text tower"):
        predict(classifies, gallery, labels=["apple"])


def test_labels_as_vectors_of_another_text_encoder(tmp_path: Path, gallery: list[Path]) -> None:
    """The file has what `Embeddings.write` wrote; a student with a layer for text vectors maps them first."""
    inputs = {"image": IMAGE, "text": VECTOR}
    vectors = torch.randn(3, 12)
    file = Embeddings([], ["red", "ein Apfel", "🙂"], None, vectors).write(tmp_path / "labels.safetensors")
    for options in ({"tower": TOWER, "text": "vectors"}, {"tower": TOWER, "text": "vectors", "width": 5}):
        folder = write(tmp_path / str(len(options)), "two_tower", options, inputs)
        network: Any = load_student(folder)
        batch = torch.stack([read_input(path, IMAGE) for path in gallery])
        with torch.no_grad():
            said = network(batch, vectors[:1].expand(7, -1))
            mapped = network.encode("text", vectors)
        cosines = F.normalize(said["embeddings"]["image"], dim=1) @ F.normalize(mapped, dim=1).T
        expected = (said["logit_scale"][:, None] * cosines).softmax(dim=1)
        predictor = Predictor(folder, label_vectors=file)
        assert predictor.classifies
        for row, one in zip(expected, predict(predictor, gallery), strict=True):
            named = dict(zip(["red", "ein Apfel", "🙂"], row.tolist(), strict=True))
            assert dict(one.classes) == pytest.approx(named, abs=1e-6)
        assert {name for name, _ in predict(predictor, gallery, labels=["red", "🙂"])[0].classes} == {"red", "🙂"}
        with pytest.raises(ConfigError, match="its 3 own classes only, found 'cat'"):
            predict(predictor, gallery, labels=["cat"])


def test_label_vectors_that_can_not_be_used(classifier: Path, reader: Path, tmp_path: Path) -> None:
    good = Embeddings([], ["a", "b"], None, torch.randn(2, 8))
    with pytest.raises(ModelError, match="logits alone"):
        Predictor(classifier, label_vectors=good.write(tmp_path / "good.safetensors"))
    assert Predictor(reader, label_vectors=tmp_path / "good.safetensors").class_names == ["a", "b"]
    wide = Embeddings([], ["a"], None, torch.randn(1, 9)).write(tmp_path / "wide.safetensors")
    with pytest.raises(ModelError, match="width 8, its texts of width 9"):
        Predictor(reader, label_vectors=wide)
    twice = Embeddings([], ["a", "a"], None, torch.randn(2, 8)).write(tmp_path / "twice.safetensors")
    other = Embeddings(["x"], [], torch.randn(1, 8), None).write(tmp_path / "other.safetensors")
    broken = Embeddings([], ["a"], None, torch.full((1, 8), torch.nan)).write(tmp_path / "nan.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for file, part in (
        (tmp_path / "absent.safetensors", "no file"),
        (tmp_path / "text.safetensors", "expected a .safetensors file with a tensor 'text'"),
        (other, "expected a .safetensors file with a tensor 'text'"),
        (twice, "expected different labels"),
        (broken, "NaN or infinite"),
    ):
        with pytest.raises(DataError, match=part):
            Predictor(reader, label_vectors=file)


def test_questions_that_can_not_be_answered(reader: Path, gallery: list[Path], tmp_path: Path) -> None:
    predictor = Predictor(reader)
    (tmp_path / "empty").mkdir()
    for labels in ([], ["", " "]):
        with pytest.raises(ConfigError, match="labels: expected at least one name"):
            predict(predictor, gallery, labels=labels)
    for templates, part in (([], "at least one prompt"), (["a"], "found 'a'"), (["{} {}"], "one {} for the label")):
        with pytest.raises(ConfigError, match=part):
            predict(predictor, gallery, templates=templates)
    with pytest.raises(DataError, match="no picture in the folder"):
        search(predictor, ["a"], [tmp_path / "empty"])
    with pytest.raises(DataError, match="at least one picture"):
        search(predictor, ["a"], [])
    with pytest.raises(DataError, match="no file"):
        predict(predictor, [tmp_path / "absent.png"])
    for texts in ([], [" "]):
        with pytest.raises(ConfigError, match="not empty"):
            search(predictor, texts, gallery)
    with pytest.raises(ConfigError, match="pictures or texts"):
        embed(predictor)
    for options in ({"top": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            predict(predictor, gallery, **options)
    for device in ("cuda:99", "gpu", "xpu"):
        with pytest.raises(ConfigError, match=f"device: '{device}' is not here"):
            Predictor(reader, device)


def test_the_package_has_the_same_names() -> None:
    assert (moekd.predict, moekd.search, moekd.embed, moekd.Predictor) == (predict, search, embed, Predictor)
