"""Reading and levelling recordings."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from moekd.data.speech import level, loudest, mu_law_decode, mu_law_encode, read_wave
from moekd.errors import DataError


def test_reading_mixes_to_mono_and_resamples(tmp_path):
    time = np.arange(16000) / 16000
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], axis=1), 16000)
    wave = read_wave(tmp_path / "a.wav", 8000)
    assert len(wave) == 8000
    assert np.abs(wave[100:-100] - 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)[100:-100]).max() < 5e-3


def test_damaged_and_empty_files_are_named(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFFnonsense")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    for name in ("bad.wav", "empty.wav", "absent.wav"):
        with pytest.raises(DataError, match=name):
            read_wave(tmp_path / name, 8000)


def test_level_and_loudest_window():
    wave = np.zeros(1000, dtype=np.float32)
    wave[600:700] = 1
    assert loudest(wave, 100).tolist() == [1] * 100
    assert loudest(wave, 2000) is wave
    levelled = level(np.random.default_rng(0).normal(3, 2, 5000).astype(np.float32))
    assert abs(levelled.mean()) < 1e-6
    assert abs(np.sqrt((levelled**2).mean()) - 0.1) < 1e-5
    assert (level(np.ones(10, dtype=np.float32)) == 0).all()


def test_mu_law_round_trip():
    wave = np.linspace(-1, 1, 1001).astype(np.float32)
    assert np.abs(mu_law_decode(mu_law_encode(wave)) - wave).max() < 0.025
    codes = np.arange(256, dtype=np.uint8)
    assert (mu_law_encode(mu_law_decode(codes)) == codes).all()
