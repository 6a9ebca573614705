"""Texts as token ids with a mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DataError
from ..tokenizers import BytesTokenizer, Tokenizer
from .field import FIELDS, Field


@FIELDS.register("text")
class TextField(Field):
    """Text -> token ids int64 `[context]`, and a second field `<name>_mask`, bool `[context]`, True on tokens.

    With `choices: M`, the column holds lists of texts (several captions of a picture). The field is then the first of
    them, and a third field `<name>_choices`, int64 `[M, context]`, holds the first M, with -1 after the end of a text
    and of the list; the transform `draw_text` puts one of them into the field, another one in each epoch.

    Args:
        column: column with texts; None is the name of the field.
        tokenizer: how texts become tokens.
        choices: M, if the column holds lists of texts.
        modality: name of the modality.
    """

    def __init__(
        self,
        column: str | None = None,
        tokenizer: Tokenizer | None = None,
        modality: str = "text",
        choices: Annotated[int, Ge(1)] | None = None,
    ) -> None:
        self.column, self.modality, self.choices = column, modality, choices
        self.tokenizer = BytesTokenizer() if tokenizer is None else tokenizer

    def decode(self, value: Any, folder: Path) -> NDArray[Any]:
        """Return ids int64 `[context]`, or `[M, context]`; -1 after the end of a text and of the list."""
        if self.choices is None:
            return self._encode(value)
        texts = [value] if isinstance(value, str) or value is None else value
        if not isinstance(texts, Sequence | np.ndarray) or not len(texts):
            raise DataError(
                f"expected a list of texts, found {'an empty one' if texts == [] else type(value).__name__}"
            )
        found = np.full((self.choices, self.tokenizer.context), -1, dtype=np.int64)
        for row, text in enumerate(texts[: self.choices]):
            found[row] = self._encode(text)
        return found

    def _encode(self, value: Any) -> NDArray[np.int64]:
        if not isinstance(value, str) or not value.strip():
            found = "an empty text" if isinstance(value, str) or value is None else type(value).__name__
            raise DataError(f"expected a text, found {found}")
        ids = self.tokenizer.encode(value)[: self.tokenizer.context]
        padded = np.full(self.tokenizer.context, -1, dtype=np.int64)
        padded[: len(ids)] = ids
        return padded

    def transform(self, name: str, values: NDArray[Any]) -> dict[str, Tensor]:
        """Return ids and mask, and all choices if there are any."""
        every = torch.from_numpy(values)
        ids = every if self.choices is None else every[:, 0]
        mask = ids >= 0
        found = {name: ids.masked_fill(~mask, self.tokenizer.pad_id), f"{name}_mask": mask}
        return found if self.choices is None else found | {f"{name}_choices": every}

    def identity(self) -> dict[str, Any]:
        """Return the options, with those of the tokenizer."""
        options = {key: value for key, value in super().identity().items() if (key, self.choices) != ("choices", None)}
        return options | {"tokenizer": self.tokenizer.identity()}
