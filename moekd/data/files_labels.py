"""Labels and splits of the `files` data set: from columns of any type to class indices and rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, did_you_mean
from .dataset import UNLABELLED, Ids
from .few_labels import labelled_mask
from .files_source import split_name

Labels = NDArray[np.int64]


def clean_labels(values: Sequence[Any]) -> list[Any]:
    """Return label values with NaN as None and whole floats as integers: csv columns with empty cells hold floats."""
    return [
        (None if math.isnan(value) else int(value) if value.is_integer() else value)
        if isinstance(value, float)
        else value
        for value in values
    ]


def find_classes(values: Mapping[str, Sequence[Any]], declared: Sequence[str] | None, column: str) -> list[str]:
    """Return the class names: the declared ones, or all values, sorted (numbers by size).

    Args:
        values: values of the label column, by table name.
        declared: class names from the config or the file.
        column: name of the label column, for messages.

    Raises:
        DataError: values that are neither integers nor texts, or fewer than 2 classes.
    """
    kinds: set[type] = set()
    found: set[Any] = set()
    for name, column_values in values.items():
        for row, value in enumerate(column_values):
            if value is None:
                continue
            if not isinstance(value, str | int):
                raise DataError(
                    f"{name} row {row}: label column '{column}' holds {type(value).__name__} ({value!r}); "
                    "expected integers or texts"
                )
            kinds.add(str if isinstance(value, str) else int)
            found.add(value)
    if len(kinds) > 1:
        raise DataError(f"label column '{column}' mixes integers and texts; expected one type in all files")
    classes = list(declared) if declared is not None else [str(value) for value in sorted(found)]
    if len(classes) < 2:
        raise DataError(f"label column '{column}' has fewer than 2 classes: {classes or 'no labels at all'}")
    return classes


def encode_labels(
    values: Sequence[Any], classes: Sequence[str], declared: bool, column: str, name: str
) -> NDArray[np.int64]:
    """Return class indices `[N]`; empty values give -1 (unlabelled).

    Integers are indices into declared class names, and values like any other without a declaration.

    Raises:
        DataError: a label out of range or unknown, with file and row.
    """
    index = {label: number for number, label in enumerate(classes)}
    labels = np.full(len(values), UNLABELLED, dtype=np.int64)
    for row, value in enumerate(values):
        if value is None:
            continue
        if declared and not isinstance(value, str):
            if not 0 <= value < len(classes):
                raise DataError(
                    f"{name} row {row}: label {value} in column '{column}' is out of range, "
                    f"expected 0 to {len(classes) - 1} for {len(classes)} classes"
                )
            labels[row] = value
            continue
        if str(value) not in index:
            hint = did_you_mean(str(value), classes) or f"; classes: {', '.join(classes[:20])}"
            raise DataError(f"{name} row {row}: unknown class {value!r} in column '{column}'{hint}")
        labels[row] = index[str(value)]
    return labels


def rows_by_column(values: Sequence[Any], column: str, name: str) -> dict[str, Ids]:
    """Return the rows of each split from a column that names it.

    Raises:
        DataError: a value that names no split, with its row.
    """
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        split = split_name(str(value))
        if split is None:
            raise DataError(
                f"{name} row {row}: {value!r} in split column '{column}' is none of train, val, test, test_..."
            )
        rows.setdefault(split, []).append(row)
    return {split: np.array(chosen) for split, chosen in rows.items()}


def draw_rows(labels: Labels, fractions: Mapping[str, float], seed: int) -> dict[str, Ids]:
    """Draw splits as fractions of the rows, class by class; "train" takes the rest.

    Raises:
        DataError: fractions that are not positive, leave nothing for train, or give an empty split.
    """
    if any(not 0 < part < 1 for part in fractions.values()) or sum(fractions.values()) >= 1:
        raise DataError(f"split fractions must be positive and leave some rows for train, found {dict(fractions)}")
    rest = np.arange(len(labels))
    rows: dict[str, Ids] = {}
    for number, (name, part) in enumerate(sorted(fractions.items())):
        count = round(part * len(labels))
        if not 1 <= count < len(rest):
            raise DataError(f"split '{name}' is empty or takes everything: {part} of {len(labels)} rows")
        chosen = labelled_mask(labels[rest], count, seed * len(fractions) + number)
        rows[name], rest = rest[chosen], rest[~chosen]
    return {"train": rest, **rows}
