"""`ravdess_av` from look-alikes of clips and of arrays, and the coefficients of recordings."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import soundfile
import torch

from moekd.data import prepare
from moekd.data.mfcc import filters, hz_to_mel, mel_to_hz, mfcc
from moekd.data.published_splits import rows_of_group
from moekd.data.ravdess_av import RavdessAV
from moekd.data.ravdess_av_prepare import SAMPLES, fixed_length
from moekd.errors import DataError

RNG = np.random.default_rng(0)
H5PY = importlib.util.find_spec("h5py") is not None


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("ravdess")
    for actor in range(1, 7):
        folder = root / f"Actor_{actor:02}"
        folder.mkdir()
        clip = f"01-0{1 + actor % 8}-01-01-01-{actor:02}"
        frames = np.full((15, 224, 224, 3), 10 * actor, dtype=np.uint8)
        np.save(folder / f"01-{clip}_facecroppad.npy", frames)
        wave = 0.3 * np.sin(2 * np.pi * 220 * actor * np.arange(24_000 * 3) / 48_000)
        soundfile.write(folder / f"03-{clip}.wav", wave, 48_000)
    return root


def test_ravdess_av_from_clips(clips, tmp_path):
    data = RavdessAV(root=str(prepare("ravdess_av", clips, tmp_path / "out", progress=False)))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "val": 1, "test": 2}
    batch = data.splits["train"].__getitems__([0, 1, 2])
    assert batch["video"].shape == (3, 3, 15, 224, 224)
    assert batch["audio"].shape == (3, 15, 156)
    assert (batch["audio"].amin(dim=(1, 2)) == 0).all()
    assert (batch["audio"].amax(dim=(1, 2)) == 1).all()
    assert torch.allclose(batch["video"][:, 0, 0, 0, 0], batch["id"] / 5.0)
    assert batch["label"].tolist() == [(int(i) + 1) % 8 for i in batch["id"]]
    by_actor = RavdessAV(by="actor", root=str(data.root))
    assert sorted(i for split in by_actor.splits.values() for i in split.ids.tolist()) == list(range(6))


def test_ravdess_av_from_arrays(tmp_path):
    source = tmp_path / "RAVDESS_preprocessed_npy"
    source.mkdir()
    np.save(source / "video_data.npy", RNG.integers(0, 256, (5, 15, 3, 224, 224), dtype=np.uint8))
    np.save(source / "audio_data.npy", RNG.normal(size=(5, 15, 156)))
    np.save(source / "label_data.npy", np.arange(5))
    folder = prepare("ravdess_av", source, tmp_path / "out", progress=False)
    data = RavdessAV(group=2, root=str(folder))
    assert data.splits["test"].labels.tolist() == rows_of_group(5, 2)["test"].tolist()
    with pytest.raises(DataError, match="do not say who speaks"):
        RavdessAV(by="actor", root=str(folder))
    np.save(source / "audio_data.npy", RNG.normal(size=(5, 15, 150)))
    with pytest.raises(DataError, match=r"audio_data.npy has shape \(5, 15, 150\)"):
        prepare("ravdess_av", source, tmp_path / "other", progress=False)


def test_ravdess_av_says_what_is_missing(clips, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    (films / "02-01-01-01-01-01-01.mp4").write_bytes(b"film")
    with pytest.raises(DataError, match=r"neither video_data.npy, .* nor \*_facecroppad.npy found, only 1 other films"):
        prepare("ravdess_av", films, tmp_path / "out")
    wave = next(clips.rglob("03-*-04.wav"))
    wave.rename(wave.with_suffix(".away"))
    try:
        with pytest.raises(DataError, match=f"lacks 1 recordings, the first: {wave.name}"):
            prepare("ravdess_av", clips, tmp_path / "out")
    finally:
        wave.with_suffix(".away").rename(wave)


def test_recordings_get_one_length():
    assert fixed_length(np.ones(5, np.float32), 8).tolist() == [1] * 5 + [0] * 3
    assert fixed_length(np.arange(9, dtype=np.float32), 4).tolist() == [2, 3, 4, 5]
    assert len(fixed_length(np.ones(SAMPLES, np.float32))) == SAMPLES


def test_mel_scale_and_coefficients():
    assert hz_to_mel(1000.0) == pytest.approx(15)
    assert hz_to_mel(6400.0) == pytest.approx(15 + 27)
    frequencies = np.array([0.0, 440.0, 1000.0, 8000.0])
    assert mel_to_hz(hz_to_mel(frequencies)) == pytest.approx(frequencies)
    bank = filters(22_050)
    assert bank.shape == (128, 1025)
    wide = bank[60:].sum(axis=1) * 22_050 / 2048
    assert wide == pytest.approx(np.ones(68), rel=0.05), "triangles of area 1"
    wave = np.sin(2 * np.pi * 440 * np.arange(SAMPLES) / 22_050)
    found = mfcc(wave, 22_050)
    assert found.shape == (15, 156)
    louder = mfcc(2 * wave, 22_050)
    shift = 20 * np.log10(2) * np.sqrt(128)
    assert louder[0, 20:-20] - found[0, 20:-20] == pytest.approx(np.full(116, shift), rel=1e-3)
    assert louder[1:, 20:-20] == pytest.approx(found[1:, 20:-20], abs=1e-2)
