"""Mel-frequency cepstral coefficients with the defaults of the library librosa, as published features have them.

Shapes: S samples, T frames, M mel bands.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

N_FFT, HOP, MELS, TOP_DB, AMIN = 2048, 512, 128, 80.0, 1e-10
#: The scale of Slaney's Auditory Toolbox: linear below 1000 Hz (200/3 Hz a mel), logarithmic above.
LINEAR, EDGE, STEP = 200.0 / 3, 1000.0, float(np.log(6.4) / 27)


def hz_to_mel(frequency: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return mels of Slaney's scale."""
    hz = np.asarray(frequency, dtype=np.float64)
    return np.where(hz < EDGE, hz / LINEAR, EDGE / LINEAR + np.log(np.maximum(hz, EDGE) / EDGE) / STEP)


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert `hz_to_mel`."""
    edge = EDGE / LINEAR
    return np.where(mel < edge, mel * LINEAR, EDGE * np.exp(STEP * (np.maximum(mel, edge) - edge)))


@cache
def filters(rate: int) -> NDArray[np.float64]:
    """Return triangles of equal area, `[M, N_FFT / 2 + 1]`, from 0 Hz to half the sample rate."""
    frequency = np.linspace(0, rate / 2, N_FFT // 2 + 1)
    edges = mel_to_hz(np.linspace(0, float(hz_to_mel(rate / 2)), MELS + 2))
    left, centre, right = (edges[i : i + MELS, None] for i in range(3))
    rising, falling = (frequency - left) / (centre - left), (right - frequency) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left)


def mfcc(wave: NDArray[np.floating], rate: int, count: int = 15) -> NDArray[np.float32]:
    """Return the first coefficients of a recording, `[count, T]` with T = S // 512 + 1.

    Hann windows of 2048 samples, padded with zeros at both ends; power in 128 mel bands, in dB and cut 80 dB below the
    largest; orthonormal discrete cosine transform of type 2.

    Args:
        wave: `[S]`.
        rate: samples a second.
        count: coefficients.
    """
    from scipy.fft import dct
    from scipy.signal.windows import hann

    padded = np.pad(np.asarray(wave, dtype=np.float64), N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    power = np.abs(np.fft.rfft(frames * hann(N_FFT, sym=False), axis=1)) ** 2
    decibels = 10 * np.log10(np.maximum(AMIN, filters(rate) @ power.T))
    decibels = np.maximum(decibels, decibels.max() - TOP_DB)
    coefficients: NDArray[np.float32] = dct(decibels, axis=0, type=2, norm="ortho")[:count].astype(np.float32)
    return coefficients
