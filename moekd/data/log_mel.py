"""Log-mel spectrograms of whole batches of waves, scaled to [0, 1].

Shapes: B clips, S samples, F frequency bins, M mel bands, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..errors import DataError

FLOOR = 1e-6


@cache
def mel_filters(bins: int, mels: int, low_hz: float, high_hz: float, sample_rate: int) -> Tensor:
    """Return triangular filters `[F, M]`, evenly spaced on the HTK mel scale 2595 log10(1 + f / 700), peak height 1.

    Args:
        bins: frequency bins F, from 0 Hz to half the sample rate.
        mels: mel bands M.
        low_hz: lower edge of the first band, in Hz.
        high_hz: upper edge of the last band, in Hz.
        sample_rate: in Hz.
    """
    frequency_F1 = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64)[:, None]
    low, high = (2595 * torch.log10(1 + torch.tensor([low_hz, high_hz], dtype=torch.float64) / 700)).tolist()
    edges = 700 * (10 ** (torch.linspace(low, high, mels + 2, dtype=torch.float64) / 2595) - 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequency_F1 - left) / (centre - left), (right - frequency_F1) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0).to(torch.float32)


@dataclass(frozen=True)
class LogMel:
    """Wave `[B, S]` -> `[B, M, T]` in [0, 1]: power in dB, cut at `top_db` below the clip's loudest point.

    Args:
        n_fft: length of the Fourier transform, in samples.
        window: length of the Hann window, in samples.
        hop: step between frames, in samples.
        mels: mel bands M.
        frames: keep the first T frames; None keeps all, S // hop + 1.
        low_hz: lower edge of the bands.
        high_hz: upper edge; None is half the sample rate.
        top_db: dynamic range.
    """

    n_fft: int = 512
    window: int = 400
    hop: int = 160
    mels: int = 64
    frames: int | None = None
    low_hz: float = 0.0
    high_hz: float | None = None
    top_db: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.window <= self.n_fft or self.hop < 1 or self.mels < 1:
            raise DataError(
                f"log_mel needs 0 < window <= n_fft, hop >= 1 and mels >= 1; found window {self.window}, "
                f"n_fft {self.n_fft}, hop {self.hop}, mels {self.mels}"
            )

    def check_rate(self, sample_rate: int) -> None:
        """Raise `DataError` if the bands don't lie between 0 Hz and half the sample rate."""
        if not 0 <= self.low_hz < (self.high_hz or sample_rate / 2) <= sample_rate / 2:
            raise DataError(
                f"log_mel needs 0 <= low_hz < high_hz <= {sample_rate / 2:g} Hz, half the sample rate; "
                f"found {self.low_hz:g} and {self.high_hz}"
            )

    def shape(self, samples: int) -> tuple[int, int]:
        """Return (M, T) for clips of this many samples."""
        frames = samples // self.hop + 1
        return self.mels, frames if self.frames is None else min(frames, self.frames)

    def __call__(self, wave_BS: Tensor, sample_rate: int) -> Tensor:
        """Return the spectrograms of a batch; `sample_rate` in Hz."""
        self.check_rate(sample_rate)
        bins, high_hz = self.n_fft // 2 + 1, self.high_hz or sample_rate / 2
        filters_FM = mel_filters(bins, self.mels, self.low_hz, high_hz, sample_rate)
        spectrum_BFT = torch.stft(
            wave_BS,
            n_fft=self.n_fft,
            hop_length=self.hop,
            win_length=self.window,
            window=torch.hann_window(self.window),
            center=True,
            pad_mode="reflect" if wave_BS.shape[1] > self.n_fft // 2 else "constant",
            return_complex=True,
        )[:, :, : self.frames]
        power_BFT = torch.view_as_real(spectrum_BFT).square().sum(-1)
        decibel_BMT = 10 * torch.log10(filters_FM.T @ power_BFT + FLOOR)
        loudest_B11 = decibel_BMT.amax(dim=(1, 2), keepdim=True)
        return ((decibel_BMT - loudest_B11) / self.top_db + 1).clamp_(0, 1)
