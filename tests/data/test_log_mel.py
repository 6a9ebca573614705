"""Log-mel spectrograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from moekd.data.log_mel import LogMel, mel_filters
from moekd.errors import DataError


@pytest.mark.parametrize(
    ("bins", "mels", "low", "high", "rate"), [(513, 112, 0, 4000, 8000), (257, 40, 80, 7600, 16000)]
)
def test_filters_equal_those_of_transformers(bins, mels, low, high, rate):
    expected = mel_filter_bank(bins, mels, float(low), float(high), rate, norm=None, mel_scale="htk")
    assert np.allclose(mel_filters(bins, mels, low, high, rate).numpy(), expected, atol=1e-6)


def test_values_equal_a_naive_computation():
    torch.manual_seed(0)
    wave = torch.randn(2, 4000) * 0.1
    mel = LogMel(n_fft=256, window=200, hop=80, mels=20)
    window = torch.zeros(256)
    window[28:228] = torch.hann_window(200)
    padded = torch.nn.functional.pad(wave[:, None], (128, 128), mode="reflect")[:, 0]
    filters = mel_filters(129, 20, 0, 4000, 8000)
    rows = []
    for clip in padded:
        frames = [torch.fft.rfft(clip[s : s + 256] * window).abs() ** 2 for s in range(0, 4001, 80)]
        decibel = 10 * torch.log10(filters.T @ torch.stack(frames, dim=1) + 1e-6)
        rows.append(((decibel - decibel.max()).clamp(min=-80) + 80) / 80)
    assert torch.allclose(mel(wave, 8000), torch.stack(rows), atol=1e-4)
    assert mel(wave, 8000).shape[1:] == mel.shape(4000) == (20, 51)


def test_a_tone_lights_its_band():
    time = torch.arange(8000) / 8000
    mel = LogMel(n_fft=512, window=400, hop=160, mels=40)
    low = mel(torch.sin(2 * math.pi * 300 * time)[None], 8000)[0].mean(1).argmax()
    high = mel(torch.sin(2 * math.pi * 2000 * time)[None], 8000)[0].mean(1).argmax()
    assert low < high


def test_silence_and_short_clips_are_finite():
    mel = LogMel(frames=10)
    assert torch.isfinite(mel(torch.zeros(2, 8000), 16000)).all()
    assert torch.isfinite(mel(torch.ones(1, 100), 16000)).all()
    assert mel(torch.zeros(2, 8000), 16000).shape == (2, 64, 10)


@pytest.mark.parametrize("options", [{"window": 600}, {"hop": 0}, {"low_hz": 9000.0}, {"high_hz": 9000.0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(DataError, match="log_mel needs"):
        LogMel(**options)(torch.zeros(1, 8000), 16000)
