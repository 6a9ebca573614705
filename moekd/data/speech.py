"""Recordings as 8 kHz waves of equal loudness: reading, cutting the loudest part, mu-law coding.

Shapes: S samples.
"""

from __future__ import annotations

from io import BytesIO
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..errors import DataError

Wave = NDArray[np.float32]
MU = 255


def read_wave(source: Path | BytesIO, sample_rate: int, name: str | None = None) -> Wave:
    """Return a recording as mono float32 `[S]`.

    Args:
        source: file, or its bytes.
        sample_rate: wanted rate in Hz.
        name: name of the recording for messages; None is the path.

    Raises:
        DataError: not decodable, or empty; the message names the recording.
    """
    name = str(source) if name is None else name
    try:
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:
        raise DataError(f"{name} can't be decoded as audio: {error}") from error
    if len(samples) == 0:
        raise DataError(f"{name} holds no samples")
    return resample(samples.mean(axis=1), rate, sample_rate)


def resample(wave: Wave, rate: int, wanted: int) -> Wave:
    """Resample `[S]` from one rate to another, both in Hz, with a polyphase filter."""
    if rate == wanted:
        return wave
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    return resample_poly(wave, wanted // common, rate // common).astype(np.float32)


def loudest(wave: Wave, length: int) -> Wave:
    """Return the window of `length` samples with the most energy; shorter waves stay as they are."""
    if len(wave) <= length:
        return wave
    energy = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return wave[start : start + length]


def level(wave: Wave, rms: float = 0.1) -> Wave:
    """Remove the mean and scale to a root mean square; silence stays silence."""
    centred = wave - wave.mean()
    loudness = float(np.sqrt(np.mean(centred.astype(np.float64) ** 2)))
    return (centred * (rms / loudness) if loudness > 0 else centred).astype(np.float32)


def mu_law_encode(wave: Wave) -> NDArray[np.uint8]:
    """Code samples in [-1, 1] with 8 bits (ITU-T G.711 curve, mu = 255)."""
    compressed = np.sign(wave) * np.log1p(MU * np.abs(np.clip(wave, -1, 1))) / np.log1p(MU)
    return np.rint((compressed + 1) / 2 * MU).astype(np.uint8)


def mu_law_decode(code: NDArray[np.uint8]) -> Wave:
    """Invert `mu_law_encode`."""
    values = np.arange(MU + 1) * (2 / MU) - 1
    table = (np.sign(values) * ((1.0 + MU) ** np.abs(values) - 1) / MU).astype(np.float32)
    return table[code]
