"""Texts as token ids with a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DataError
from ..tokenizers import BytesTokenizer, Tokenizer
from .field import FIELDS, Field


@FIELDS.register("text")
class TextField(Field):
    """Text -> token ids int64 `[context]`, and a second field `<name>_mask`, bool `[context]`, True on tokens.

    Args:
        column: column with texts; None is the name of the field.
        tokenizer: how texts become tokens.
        modality: name of the modality.
    """

    def __init__(self, column: str | None = None, tokenizer: Tokenizer | None = None, modality: str = "text") -> None:
        self.column, self.modality = column, modality
        self.tokenizer = BytesTokenizer() if tokenizer is None else tokenizer

    def decode(self, value: Any, folder: Path) -> NDArray[Any]:
        """Return ids int64 `[context]`, -1 after the end of the text."""
        if not isinstance(value, str) or not value.strip():
            found = "an empty text" if isinstance(value, str) or value is None else type(value).__name__
            raise DataError(f"expected a text, found {found}")
        ids = self.tokenizer.encode(value)[: self.tokenizer.context]
        padded = np.full(self.tokenizer.context, -1, dtype=np.int64)
        padded[: len(ids)] = ids
        return padded

    def transform(self, name: str, values: NDArray[Any]) -> dict[str, Tensor]:
        """Return ids and mask."""
        ids = torch.from_numpy(values)
        mask = ids >= 0
        return {name: ids.masked_fill(~mask, self.tokenizer.pad_id), f"{name}_mask": mask}

    def identity(self) -> dict[str, Any]:
        """Return the options, with those of the tokenizer."""
        return super().identity() | {"tokenizer": self.tokenizer.identity()}
