"""A few made-up rows in place of a large data set that is not at hand, so that a config can be checked without it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import soundfile
from PIL import Image

from ..errors import DataError
from .fields import Field
from .fields.audio import AudioField
from .fields.image import ImageField
from .fields.text import TextField
from .fields.vector import VectorField
from .files import Files

#: Rows of a split, and what a made-up text says.
ROWS = 8
TEXT = "a photo of a red apple"


def stand_in(
    fields: Mapping[str, Field],
    folder: Path,
    class_names: Sequence[str] | None = None,
    splits: Sequence[str] = (),
    labelled: bool = True,
) -> Files:
    """Write made-up rows and return them as a data set.

    Args:
        fields: the fields that the config declares, by name.
        folder: where the rows are written; it has to stay as long as the data set is used.
        class_names: its classes; two made-up ones where there are labels and no names.
        splits: names of test splits besides train, val and test.
        labelled: whether rows have a label.

    Raises:
        DataError: a field whose values can't be made up; the message names it.
    """
    names = list(class_names or (["one", "another"] if labelled else []))
    columns: dict[str, Any] = {}
    for name, field in fields.items():
        columns[name if field.column is None else field.column] = [made_up(name, field)] * ROWS
    if labelled:
        columns["label"] = [names[row % len(names)] for row in range(ROWS)]
    files = {}
    for split in dict.fromkeys(["train", "val", "test", *splits]):
        files[split] = f"{split}.parquet"
        parquet.write_table(pa.table(columns), folder / files[split])
    return Files(
        str(folder), dict(fields), "label" if labelled else None, dict(files), classes=names or None, streaming=True
    )


def made_up(name: str, field: Field) -> Any:
    """Return a value of a field's column.

    Raises:
        DataError: nothing is known about such values.
    """
    if isinstance(field, ImageField):
        return _encoded(Image.new("RGB", (64, 48), "teal"))
    if isinstance(field, TextField):
        return TEXT
    if isinstance(field, AudioField):
        content = io.BytesIO()
        soundfile.write(content, np.zeros(field.sample_rate, dtype=np.float32), field.sample_rate, format="WAV")
        return content.getvalue()
    if isinstance(field, VectorField) and field.size is not None:
        return [0.5] * field.size
    raise DataError(
        f"field '{name}' of type {type(field).__name__} can't be made up; "
        "it needs its data, or 'size' where it holds vectors"
    )


def _encoded(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
