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

    Args:
        texts: `[M]`.

    Attributes:
        tokenizer: byte value + 1, 0 is padding.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        data = [text.encode() for text in texts]
        self.tokenizer = BytesTokenizer(max(len(text) for text in data), lower=False)
        self._bytes: NDArray[np.uint8] = np.zeros((len(data), self.tokenizer.context), dtype=np.uint8)
        self._length = np.array([len(text) for text in data])
        for row, text in enumerate(data):
            self._bytes[row, : len(text)] = np.frombuffer(text, dtype=np.uint8)

    def specs(self, name: str) -> dict[str, FieldSpec]:
        """Return the field, ids int64 `[context]`, and its mask, bool `[context]`."""
        shape = (self.tokenizer.context,)
        return {name: FieldSpec(shape, "int64", "text"), f"{name}_mask": FieldSpec(shape, "bool", "text")}

    def fields(self, name: str, index: Ids) -> dict[str, ArrayField]:
        """Return the field and its mask for rows that hold the texts `index` `[N]`."""
        specs, mask = self.specs(name), f"{name}_mask"
        shown = np.arange(self.tokenizer.context) < self._length[:, None]
        ids = np.where(shown, self._bytes.astype(np.int16) + 1, 0).astype(np.int16)
        return {
            name: ArrayField(ids, specs[name], to_integers, index),
            mask: ArrayField(shown, specs[mask], torch.from_numpy, index),
        }

    def recipe(self) -> dict[str, Any]:
        """Return how models read the ids back as texts."""
        return {"tokenizer": self.tokenizer.recipe()}


def to_integers(values: NDArray[Any]) -> Tensor:
    """Return a batch as int64."""
    return torch.from_numpy(values).to(torch.int64)
