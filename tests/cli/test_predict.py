"""`moekd predict` with labels and texts: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch

from moekd.inference import Predictor, predict, search

from ..inference.students import NAMES, pictures, two_towers


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a tower for pictures and one for texts."""
    return two_towers(tmp_path_factory.mktemp("reader") / "s")


def test_labels_are_parted_by_commas(moekd, reader: Path, tmp_path: Path) -> None:
    (path,) = pictures(tmp_path, 1)
    said = moekd("predict", reader, "--image", path, "--labels", "a red apple,rain , naïve café", "--labels", "🙂")
    (expected,) = predict(reader, [path], labels=["a red apple", "rain", "naïve café", "🙂"])
    assert said.code == 0, said.err
    assert said.out.splitlines() == [str(path), *[f"  {100 * p:5.1f} %  {name}" for name, p in expected.classes]]
    other = moekd("predict", reader, path, "--labels", "a,b", "--templates", "the {} in snow", "--top", "1", "--json")
    (expected,) = predict(reader, [path], 1, labels=["a", "b"], templates=["the {} in snow"])
    label, probability = expected.classes[0]
    found = json.loads(other.out)
    assert found == [{"path": str(path), "classes": [{"label": label, "probability": pytest.approx(probability)}]}]
    assert moekd("predict", reader, path).out.count("%") == len(NAMES)


def test_texts_find_pictures_in_a_folder(moekd, reader: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "g", 5)
    said = moekd("predict", reader, tmp_path / "g", "--text", "a dog", "--text", "rain", "--top", "2")
    expected = search(Predictor(reader), ["a dog", "rain"], [tmp_path / "g"], 2)
    lines = [line for m in expected for line in (m.text, *[f"  {c:6.3f}  {path}" for path, c in m.pictures])]
    assert said.out.splitlines() == lines
    found = json.loads(moekd("predict", reader, tmp_path / "g", "--text", "rain", "--json").out)
    assert [one["text"] for one in found] == ["rain"]
    assert [one["path"] for one in found[0]["pictures"]][:2] == [path for path, _ in expected[1].pictures]


def test_embeddings_of_texts_and_pictures(moekd, reader: Path, tmp_path: Path) -> None:
    files = pictures(tmp_path / "g", 2)
    said = moekd("predict", reader, "--text", "a dog", "--output", tmp_path / "t.safetensors")
    assert said.out.strip() == f"embeddings: {tmp_path / 't.safetensors'}"
    assert set(safetensors.torch.load_file(tmp_path / "t.safetensors")) == {"text"}
    assert moekd("predict", reader, *files, "--text", "a", "--output", tmp_path / "b.json").code == 0
    both = json.loads((tmp_path / "b.json").read_text())
    assert (len(both["images"]), len(both["texts"])) == (2, 1)
    printed = json.loads(moekd("predict", reader, "--text", "a dog", "--json").out)
    assert printed["texts"][0]["text"] == "a dog"


def test_questions_that_do_not_go_together(moekd, reader: Path, tmp_path: Path) -> None:
    (path,) = pictures(tmp_path, 1)
    for arguments, part in (
        ((), "expected pictures (INPUT or --image) or texts (--text), found none"),
        (("--text", "a"), "a text alone gives its embedding; name a file with --output"),
        ((path, "--text", "a", "--labels", "b"), "--text does not go together with --labels"),
        ((path, "--output", "x.json", "--labels", "b"), "--output does not go together with --labels"),
        ((path, "--output", "x.pt"), "expected a file ending in .safetensors or .json"),
        ((path, "--output", tmp_path / "no" / "x.json"), "no folder"),
        ((path, "--labels", " , "), "labels: expected at least one name, found none"),
        ((path, "--device", "gpu"), "device: 'gpu' is not here"),
    ):
        said = moekd("predict", reader, *arguments)
        assert said.code == 2, said
        assert part in said.err
        assert said.out == ""
