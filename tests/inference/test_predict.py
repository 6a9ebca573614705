"""From files to predictions: pictures of every kind, arrays, and files that are neither."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moekd.errors import DataError
from moekd.export import export_student, load_student
from moekd.inference import predict, read_input
from moekd.model import Model
from moekd.networks import NETWORKS

COLOUR = {"shape": [3, 8, 8], "dtype": "float32", "modality": "image"}
GREY = {"shape": [1, 8, 8], "dtype": "float32", "modality": "image"}
VECTOR = {"shape": [6], "dtype": "float32", "modality": "vector"}
TOKENS = {"shape": [4], "dtype": "int64", "modality": "text"}


def student(folder: Path, inputs: dict[str, dict[str, Any]], kind: str = "mlp", **options: Any) -> Path:
    """Export a student with fresh weights."""
    torch.manual_seed(0)
    network = NETWORKS.get(kind)(num_classes=3, **options)  # type: ignore[call-arg]
    config = {
        "title": "t",
        "network": {"kind": kind, "options": options},
        "class_names": ["a", "b", "c"],
        "fields": inputs,
    }
    return export_student(Model(network, list(inputs)), config, folder, program=False)


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    return student(tmp_path / "student", {"vector": VECTOR}, in_features=6, hidden=[4])


def test_predictions_are_those_of_the_student(vectors: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    files = []
    for index, row in enumerate(rows):
        files.append(tmp_path / f"{index}.npy")
        np.save(files[-1], row)
    expected = load_student(vectors)(torch.from_numpy(rows)).softmax(dim=1)
    found = predict(vectors, files, top=3, batch_size=2)
    assert [prediction.path for prediction in found] == [str(file) for file in files]
    for row, prediction in zip(expected, found, strict=True):
        assert dict(prediction.classes) == pytest.approx(dict(zip("abc", row.tolist(), strict=True)), abs=1e-6)
        probabilities = [p for _, p in prediction.classes]
        assert probabilities == sorted(probabilities, reverse=True)
    assert len(predict(vectors, files[:1], top=9)[0].classes) == 3
    assert predict(vectors, []) == []


def test_a_student_of_two_inputs_is_refused(tmp_path: Path) -> None:
    encoders = [{"kind": "mlp_encoder", "in_features": 6, "hidden": [4]}] * 2
    from moekd.export import build_network

    description = {"kind": "fusion", "options": {"encoders": encoders, "hidden": 4}, "context": {"num_classes": 3}}
    fields = {"left": VECTOR, "right": VECTOR}
    config = {"title": "t", "network": description, "class_names": ["a", "b", "c"], "fields": fields}
    export_student(Model(build_network(description), ["left", "right"]), config, tmp_path / "s", program=False)
    with pytest.raises(DataError, match="reads left, right; files can be given to students of one input only"):
        predict(tmp_path / "s", [tmp_path / "x.npy"])


def picture(path: Path, mode: str, values: Any = 200, size: tuple[int, int] = (16, 16)) -> Path:
    Image.new(mode, size, values).save(path)
    return path


@pytest.mark.parametrize(
    ("mode", "values", "colour", "grey"),
    [
        ("L", 200, (200, 200, 200), 200),
        ("RGB", (250, 0, 0), (250, 0, 0), 75),
        ("RGBA", (250, 0, 0, 0), (255, 255, 255), 255),
        ("LA", (10, 0), (255, 255, 255), 255),
        ("1", 1, (255, 255, 255), 255),
        ("P", 0, None, None),
    ],
)
def test_modes_of_pictures(tmp_path: Path, mode: str, values: Any, colour: Any, grey: Any) -> None:
    path = picture(tmp_path / "p.png", mode, values)
    for field, expected in ((COLOUR, colour), (GREY, None if grey is None else (grey,))):
        value = read_input(path, field)
        assert (tuple(value.shape), value.dtype) == (tuple(field["shape"]), torch.float32)
        if expected is not None:
            assert (value * 255).round().amax(dim=(1, 2)).tolist() == pytest.approx(list(expected), abs=1)
            assert (value * 255).round().amin(dim=(1, 2)).tolist() == pytest.approx(list(expected), abs=1)


def test_rows_and_columns_keep_their_place(tmp_path: Path) -> None:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    assert torch.equal(
        (read_input(tmp_path / "p.png", COLOUR) * 255).round(), torch.from_numpy(pixels).permute(2, 0, 1)
    )
    wide = COLOUR | {"shape": [3, 4, 8]}
    assert read_input(tmp_path / "p.png", wide).shape == (3, 4, 8)


def test_pictures_are_scaled_like_training_data(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", "RGB", (51, 102, 204))
    value = read_input(path, COLOUR | {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.2]})
    assert value[:, 0, 0].tolist() == pytest.approx([0.2, 0.5, 2.5], abs=1e-5)


def test_arrays_take_the_type_of_the_field(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([1, 2, 3, 4], dtype=np.int32))
    assert read_input(tmp_path / "t.npy", TOKENS).dtype == torch.int64
    np.save(tmp_path / "v.npy", np.arange(6, dtype=np.float64))
    assert read_input(tmp_path / "v.npy", VECTOR).dtype == torch.float32
    np.save(tmp_path / "f.npy", np.array([1.5, 2, 3, 4]))
    with pytest.raises(DataError, match="float64; the student takes int64"):
        read_input(tmp_path / "f.npy", TOKENS)


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Return contents that can't be read, by file name, with a part of the message."""

    def array(value: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, value, **options)
        return buffer.getvalue()

    def archive() -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, np.zeros(6))
        return buffer.getvalue()

    def png() -> bytes:
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 80).save(buffer, format="PNG")
        return buffer.getvalue()

    whole, tiny_zip = png(), io.BytesIO()
    zipfile.ZipFile(tiny_zip, "w").close()
    return {
        "empty.npy": (b"", "no readable array"),
        "torn.npy": (array(np.zeros(600, np.float32))[:200], "no readable array"),
        "text.npy": (array(np.array(["a", "b"])), "no readable array"),
        "objects.npy": (array(np.array([{}], dtype=object), allow_pickle=True), "no readable array"),
        "complex.npy": (array(np.zeros(6, np.complex64)), "complex64"),
        "shape.npy": (array(np.zeros(7, np.float32)), r"shape \(7,\); the student takes \(6,\)"),
        "nan.npy": (array(np.full(6, np.nan, np.float32)), "NaN or infinite"),
        "infinite.npy": (array(np.full(6, np.inf, np.float32)), "NaN or infinite"),
        "archive.npy": (archive(), "no readable array"),
        "zip.npy": (tiny_zip.getvalue(), "no readable array"),
        "broken_zip.npy": (b"PK\x03\x04" + b"\0" * 40, "no readable array"),
        "empty.png": (b"", "no readable picture"),
        "text.png": (b"hello", "no readable picture"),
        "torn.png": (whole[: len(whole) // 2], "no readable picture"),
        "flipped.png": (whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], "no readable picture"),
    }


@pytest.mark.parametrize("name", bad_files(Path()))
def test_unreadable_files_are_named(tmp_path: Path, name: str) -> None:
    content, part = bad_files(tmp_path)[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=part) as caught:
        read_input(tmp_path / name, VECTOR if name.endswith("npy") else COLOUR)
    assert str(tmp_path / name) in str(caught.value)


def test_a_picture_for_a_vector_is_refused(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", "RGB", 0)
    with pytest.raises(DataError, match=r"reads vector; give a .npy file of shape \(6,\)"):
        read_input(path, VECTOR)


def test_a_picture_that_explodes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "p.png", "L", 0, (300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="no readable picture"):
        read_input(path, COLOUR)


def test_a_folder_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_input(tmp_path, COLOUR)
