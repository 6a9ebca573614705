"""Raw texts in memory as fields of bytes, which every model tokenizes for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .arrays import ArrayField
from .dataset import FieldSpec, Ids
from .tokenizers import BytesTokenizer


class ByteTexts:
    """Texts as UTF-8 bytes, none of them cut: the context is the longest text.

    The fields are those of the field kind `text`: the first text, its mask and, where things have several texts, all
    of them.

    Args:
        texts: one or more texts of each thing, the same number M for all.

    Attributes:
        tokenizer: byte value + 1, 0 is padding.
    """

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        longest = max(len(text.encode()) for several in texts for text in several)
        self.tokenizer = BytesTokenizer(longest, lower=False)
        self._ids = np.full((len(texts), len(texts[0]), longest), -1, dtype=np.int16)
        for row, several in enumerate(texts):
            for place, text in enumerate(several):
                ids = self.tokenizer.encode(text)
                self._ids[row, place, : len(ids)] = ids

    def specs(self, name: str) -> dict[str, FieldSpec]:
        """Return the field, ids int64 `[context]`, its mask, bool, and the choices int64 `[M, context]` if M > 1."""
        _, several, context = self._ids.shape
        specs = {name: FieldSpec((context,), "int64", "text"), f"{name}_mask": FieldSpec((context,), "bool", "text")}
        return specs | ({f"{name}_choices": FieldSpec((several, context), "int64", "text")} if several > 1 else {})

    def fields(self, name: str, index: Ids) -> dict[str, ArrayField]:
        """Return the fields for rows that hold the texts of the things `index` `[N]`."""
        first = self._ids[:, 0]
        arrays = {name: first.clip(min=0), f"{name}_mask": first >= 0, f"{name}_choices": self._ids}
        transforms = {f"{name}_mask": torch.from_numpy}
        return {
            key: ArrayField(arrays[key], spec, transforms.get(key, to_integers), index)
            for key, spec in self.specs(name).items()
        }

    def recipe(self) -> dict[str, Any]:
        """Return how models read the ids back as texts."""
        return {"tokenizer": self.tokenizer.recipe()}


def to_integers(values: NDArray[Any]) -> Tensor:
    """Return a batch as int64."""
    return torch.from_numpy(values).to(torch.int64)
