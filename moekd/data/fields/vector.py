"""Numbers that are in the table already: feature vectors, embeddings, small arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from ...errors import DataError
from .field import FIELDS, Field, floats, media


@FIELDS.register("vector")
class VectorField(Field):
    """List of numbers (or a `.npy` file) -> float32 tensor of a fixed shape.

    Args:
        column: column with lists of numbers, single numbers or paths of `.npy` files; None is the name of the field.
        size: number of values, to be checked; None takes the shape of the first row.
        modality: name of the modality ("text" for sentence vectors, say).
    """

    holds_paths = True

    def __init__(
        self, column: str | None = None, size: Annotated[int, Ge(1)] | None = None, modality: str = "vector"
    ) -> None:
        self.column, self.size, self.modality = column, size, modality

    def decode(self, value: Any, folder: Path) -> NDArray[Any]:
        """Return float32 of the value's shape; a single number has shape `[1]`."""
        if value is None:
            raise DataError("expected numbers, found an empty value")
        if isinstance(value, str):
            name, content = media(value, folder)
            try:
                value = np.load(content, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{name} can't be read as an array: {error}") from error
        array = np.atleast_1d(floats(value))
        if self.size is not None and array.size != self.size:
            raise DataError(f"expected {self.size} values, found {array.size}")
        return array
