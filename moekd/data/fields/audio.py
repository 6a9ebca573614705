"""Sounds as waves or log-mel spectrograms of a fixed length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DataError
from ..log_mel import LogMel
from ..speech import read_wave
from .field import FIELDS, Field, media


@FIELDS.register("audio")
class AudioField(Field):
    """Recording -> float32 wave `[1, samples]`, or log-mel `[1, mels, frames]` in [0, 1].

    Args:
        seconds: length; longer recordings are cut around their centre, shorter ones padded with zeros at the end.
        column: column with paths, bytes or HF `Audio` values; None is the name of the field.
        sample_rate: in Hz; other rates are resampled.
        log_mel: options of the spectrogram; None gives the wave.
        modality: name of the modality.
    """

    holds_paths = True

    def __init__(
        self,
        seconds: Annotated[float, Gt(0)],
        column: str | None = None,
        sample_rate: Annotated[int, Ge(1)] = 16000,
        log_mel: LogMel | None = None,
        modality: str = "audio",
    ) -> None:
        self.column, self.seconds, self.sample_rate, self.modality = column, seconds, sample_rate, modality
        self.log_mel = log_mel
        self._samples = round(seconds * sample_rate)
        if self._samples < 1:
            raise DataError(f"field 'audio': {seconds} seconds at {sample_rate} Hz hold no sample")
        if log_mel is not None:
            log_mel.check_rate(sample_rate)

    def decode(self, value: Any, folder: Path) -> NDArray[Any]:
        """Return float32 `[samples]`."""
        name, content = media(value, folder)
        wave = read_wave(content, self.sample_rate, name)
        excess = len(wave) - self._samples
        if excess > 0:
            wave = wave[excess // 2 : excess // 2 + self._samples]
        return np.pad(wave, (0, self._samples - len(wave)))

    def transform(self, name: str, values: NDArray[Any]) -> dict[str, Tensor]:
        """Return waves or spectrograms of a batch."""
        waves = torch.from_numpy(values)
        shown = waves if self.log_mel is None or not len(waves) else self.log_mel(waves, self.sample_rate)
        return {name: shown.unsqueeze(1)}
