"""What an outside audio model wants to hear: features made from waves by its own extractor.

Shapes: B batch, S samples of a wave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError

AST_HOP_SECONDS, AST_WINDOW_SECONDS = 0.010, 0.025


class SoundContract(nn.Module):
    """Turns a batch's waves into a model's inputs with the feature extractor of its library, on the CPU.

    Args:
        extractor: a feature extractor of transformers for waves.
        field: how the data set describes the field: `[1, S]` or `[S]` with its "sample_rate".
        label: how messages call the input.

    Raises:
        ConfigError: the field holds no waves, has another sample rate, or is longer than the model can hear.

    Shape:
        input `[B, 1, S]` or `[B, S]`; output: named tensors `[B, ...]`.
    """

    def __init__(self, extractor: Any, field: Mapping[str, Any] | None = None, label: str = "audio") -> None:
        super().__init__()
        self.extractor, self.label, self.rate = extractor, label, int(extractor.sampling_rate)
        self.limit = _limit(extractor)
        if field is None:
            return
        shape = tuple(field.get("shape", ()))
        if field.get("log_mel") or len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != 1):
            raise ConfigError(
                f"{label}: expected a mono wave [1, samples], found {list(shape)}; leave out 'log_mel' in the data set"
            )
        if field.get("sample_rate") != self.rate:
            raise ConfigError(
                f"{label}: the model hears {self.rate} Hz, the data set gives {field.get('sample_rate')} Hz; set "
                f"sample_rate: {self.rate}"
            )
        if self.limit is not None and shape[-1] > self.limit:
            raise ConfigError(
                f"{label}: {shape[-1] / self.rate:.1f} seconds, the model hears {self.limit / self.rate:.1f}; shorten "
                "'seconds' in the data set"
            )

    def forward(self, wave: Tensor) -> dict[str, Tensor]:
        """Return what the extractor makes of the waves.

        Raises:
            ModelError: no batch of mono waves, or waves longer than the model can hear.
        """
        flat = wave.squeeze(1) if wave.ndim == 3 and wave.shape[1] == 1 else wave
        if flat.ndim != 2 or not flat.is_floating_point():
            raise ModelError(f"{self.label}: expected mono waves [B, 1, S], found {wave.dtype} {list(wave.shape)}")
        if self.limit is not None and flat.shape[1] > self.limit:
            raise ModelError(f"{self.label}: {flat.shape[1]} samples, the model hears {self.limit}")
        flat = torch.zeros(flat.shape) if flat.is_meta else flat  # a description of waves has no numbers
        rows = list(flat.detach().to("cpu", torch.float32).numpy())
        features = self.extractor(rows, sampling_rate=self.rate, return_tensors="pt")
        return {
            name: value.to(wave.device, wave.dtype) if value.is_floating_point() else value.to(wave.device)
            for name, value in ((name, torch.as_tensor(value)) for name, value in features.items())
        }

    def contract(self) -> dict[str, Any]:
        """Return in plain values how waves are prepared."""
        return {"extractor": type(self.extractor).__name__, "sampling_rate": self.rate, "longest": self.limit}

    def extra_repr(self) -> str:
        """Say everything that changes the output, since fingerprints read it."""
        return f"{type(self.extractor).__name__} {sorted(self.extractor.to_dict().items())}"


def _limit(extractor: Any) -> int | None:
    """Return the longest wave in samples that an extractor does not cut; None where it cuts none."""
    for name in ("nb_max_samples", "n_samples"):
        if getattr(extractor, name, None) is not None:
            return int(getattr(extractor, name))
    if type(extractor).__name__ == "ASTFeatureExtractor":
        seconds = (extractor.max_length - 1) * AST_HOP_SECONDS + AST_WINDOW_SECONDS
        return round(seconds * extractor.sampling_rate)
    return None
