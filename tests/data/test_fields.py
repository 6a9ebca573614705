"""Fields and tokenizers, one value at a time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from moekd.data.fields.audio import AudioField
from moekd.data.fields.image import ImageField
from moekd.data.fields.text import TextField
from moekd.data.fields.vector import VectorField
from moekd.data.log_mel import LogMel
from moekd.data.tokenizers import BytesTokenizer, HubTokenizer
from moekd.errors import DataError

HERE = Path()


def png(image, form="PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_transparent_pixels_become_white():
    pixels = ImageField(4).decode(png(Image.new("RGBA", (4, 4), (255, 0, 0, 0))), HERE)
    assert (pixels == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    assert ImageField(4).decode(png(palette), HERE)[:, 0, 0].tolist() == [10, 20, 30]


def test_sixteen_bit_grey_is_scaled():
    image = Image.fromarray(np.full((4, 4), 65535 // 2, dtype=np.uint16))
    assert ImageField(4, color="grey").decode(png(image), HERE)[0, 0, 0] in (127, 128)


def test_crop_and_stretch():
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste((0, 0, 0), (0, 0, 10, 20))
    assert (ImageField(10).decode(png(wide), HERE)[:, :, 1:] == 255).all()
    stretched = ImageField(10, resize="stretch").decode(png(wide), HERE)
    assert stretched[0, 5, 0] == 0
    assert stretched[0, 5, 9] == 255
    assert ImageField((6, 12)).decode(png(wide), HERE).shape == (3, 6, 12)


def test_orientation_of_photographs_is_applied():
    picture = Image.new("RGB", (8, 4), "white")
    exif = picture.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.paste((0, 0, 0), (0, 0, 4, 4))
    picture.save(buffer, "PNG", exif=exif)
    pixels = ImageField((8, 4)).decode(buffer.getvalue(), HERE)
    assert pixels[0, 1, 2] == 0
    assert pixels[0, 6, 2] == 255


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 4, "mean": [0.5]}, {"size": 4, "std": [0, 1, 1]}])
def test_wrong_image_options(options):
    with pytest.raises(DataError, match="field 'image'"):
        ImageField(**options)


def test_image_values_of_hugging_face(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    field = ImageField(4)
    for value in (
        {"path": "a.png", "bytes": None},
        {"path": None, "bytes": (tmp_path / "a.png").read_bytes()},
        "a.png",
    ):
        assert field.decode(value, tmp_path)[:, 0, 0].tolist() == [255, 0, 0]
    for value in (None, "", 5, {"path": None, "bytes": None}):
        with pytest.raises(DataError, match="expected a path or bytes"):
            field.decode(value, tmp_path)


def wav(samples, rate=8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_audio_is_cut_around_the_centre_or_padded():
    field = AudioField(seconds=0.5, sample_rate=8000)
    ramp = np.arange(8000, dtype=np.float32) / 8000
    assert np.allclose(field.decode(wav(ramp), HERE), ramp[2000:6000])
    short = field.decode(wav(ramp[:100]), HERE)
    assert np.allclose(short[:100], ramp[:100])
    assert (short[100:] == 0).all()
    assert field.transform("a", np.stack([short, short]))["a"].shape == (2, 1, 4000)


def test_audio_as_spectrogram():
    field = AudioField(seconds=1, sample_rate=8000, log_mel=LogMel(n_fft=256, window=256, hop=100, mels=20))
    example = field.decode(wav(np.random.default_rng(0).normal(size=8000)), HERE)
    spec = field.specs("sound", example)["sound"]
    assert spec.shape == (1, 20, 81)
    assert spec.modality == "audio"
    assert field.transform("sound", np.empty((0, 8000), np.float32))["sound"].shape[0] == 0
    with pytest.raises(DataError, match="half the sample rate"):
        AudioField(seconds=1, sample_rate=8000, log_mel=LogMel(high_hz=8000))


def test_text_gives_ids_and_mask():
    field = TextField(tokenizer=BytesTokenizer(context=6))
    out = field.transform("t", np.stack([field.decode("Ab", HERE), field.decode("abcdefgh", HERE)]))
    assert out["t"].tolist() == [[98, 99, 0, 0, 0, 0], [98, 99, 100, 101, 102, 103]]
    assert out["t_mask"].tolist() == [[True] * 2 + [False] * 4, [True] * 6]
    for value in (None, "", "  ", 3):
        with pytest.raises(DataError, match="expected a text"):
            field.decode(value, HERE)


def test_hashed_ngrams_are_stable_and_in_range():
    tokenizer = BytesTokenizer(context=50, ngram=3, buckets=100)
    ids = tokenizer.encode("the cat and the dog")
    assert ids == BytesTokenizer(context=50, ngram=3, buckets=100).encode("the cat and the dog")
    assert len(ids) == 17
    assert ids[0] == ids[12]
    assert 1 <= min(ids) <= max(ids) < tokenizer.vocabulary == 101
    assert tokenizer.encode("a") == [1 + 3904355907 % 100]


def test_hub_tokenizer_from_a_folder(tmp_path):
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "a": 2, "dog": 3}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    parts = {"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    field = TextField(tokenizer=HubTokenizer(str(tmp_path), context=4))
    out = field.transform("t", field.decode("a dog sleeps", HERE)[None])
    assert out["t"].tolist() == [[2, 3, 0, 1]]
    assert out["t_mask"].tolist() == [[True, True, True, False]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="can't be loaded"):
        HubTokenizer(str(tmp_path / "empty"))


def test_vectors_from_lists_numbers_and_files(tmp_path):
    np.save(tmp_path / "v.npy", np.arange(6).reshape(2, 3))
    field = VectorField(modality="text")
    assert field.decode("v.npy", tmp_path).shape == (2, 3)
    assert field.decode(3, tmp_path).tolist() == [3.0]
    assert field.specs("v", field.decode([1, 2], tmp_path))["v"].modality == "text"
    assert field.transform("v", np.ones((2, 3), np.float32))["v"].dtype == torch.float32
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for value in (None, "absent.npy", "object.npy", [[1], [1, 2]], {"a": 1}):
        with pytest.raises(DataError):
            field.decode(value, tmp_path)
