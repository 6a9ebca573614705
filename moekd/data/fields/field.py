"""What every field does: decode one value of a column, and transform a whole batch of decoded values."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DataError
from ...registry import Registry
from ..dataset import FieldSpec


class Field:
    """One field of a batch, read from one column; the parameters of a subclass's `__init__` are its config options.

    Attributes:
        modality: modality of the tensors.
        column: name of the column; None is the name of the field.
        holds_paths: whether text in the column is a path relative to the data file.
    """

    modality: str
    column: str | None
    holds_paths: ClassVar[bool] = False

    def decode(self, value: Any, folder: Path) -> NDArray[Any]:
        """Return one value as an array; all values of a field give the same shape.

        Args:
            value: value of the column.
            folder: folder of the data file; paths are relative to it.

        Raises:
            DataError: the value can't be used; the message says why, with the path if there is one.
        """
        raise NotImplementedError

    def transform(self, name: str, values: NDArray[Any]) -> dict[str, Tensor]:
        """Return the tensors of a batch of decoded values `[B, ...]`, by batch field; most fields give one."""
        return {name: torch.from_numpy(values)}

    def specs(self, name: str, example: NDArray[Any]) -> dict[str, FieldSpec]:
        """Return what `transform` gives, from one decoded value."""
        tensors = self.transform(name, example[None])
        return {
            key: FieldSpec(tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."), self.modality)
            for key, tensor in tensors.items()
        }

    def identity(self) -> dict[str, Any]:
        """Return the options, as text."""
        return {key: repr(value) for key, value in sorted(vars(self).items()) if not key.startswith("_")}


def media(value: Any, folder: Path) -> tuple[str, Path | io.BytesIO]:
    """Return name and content (a path or bytes) of a media value: a path, bytes, or the `{path, bytes}` of HF datasets.

    Raises:
        DataError: an empty value, another type, or a file that does not exist.
    """
    path, data = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, None)
    if isinstance(path, bytes):
        path, data = None, path
    if data is not None:
        return path or "bytes in the table", io.BytesIO(data)
    if not isinstance(path, str) or not path:
        found = "an empty value" if path is None or path == "" else f"{type(path).__name__}"
        raise DataError(f"expected a path or bytes, found {found}")
    full = folder / path
    if not full.is_file():
        raise DataError(f"{full} does not exist")
    return str(full), full


def floats(value: Any) -> NDArray[np.float32]:
    """Return numbers as a float32 array.

    Raises:
        DataError: not a regular array of numbers.
    """
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected numbers, found {type(value).__name__}: {error}") from error
    return array


FIELDS: Registry[Field] = Registry("field", "fields", base=Field)
