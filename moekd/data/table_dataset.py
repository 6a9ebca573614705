"""Data sets that are tables: fields decoded from columns, labels from one, splits from files, a column or fractions.

The kinds differ in where their tables come from: `files`, `webdataset`, `hub`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, did_you_mean
from .dataset import Dataset, FieldSpec, Ids, Split
from .fields import Field
from .fields.audio import AudioField
from .fields.image import ImageField
from .fields.text import TextField
from .files_labels import Labels, clean_labels, draw_rows, encode_labels, find_classes, rows_by_column
from .files_source import ALL, split_name
from .fingerprint import digest
from .table_split import TableSplit
from .tables import Table, usable

Division = str | Mapping[str, str | list[str] | int | float] | None
SPLIT_HELP = (
    "set 'split' to a column that says train, val or test, to fractions {val: 0.1, test: 0.2, seed: 0}, "
    "or to files {train: a.csv, val: b.csv, test: c.csv}"
)
PROBED_ROWS = 20


class TableDataset(Dataset):
    """Base of the data sets made of tables; subclasses give the tables.

    Args:
        path: where the data lie, for messages.
        fields: the batch fields, by name.
        label: column with the class; None: no row has a label.
        split: column, fractions or names of tables; see `Files`.
        classes: class names in order; None sorts the values of the label column.
        labelled_splits: the splits that have labels; None: all of them.
    """

    def __init__(
        self,
        path: str,
        fields: Mapping[str, Field],
        label: str | None,
        split: Division,
        classes: list[str] | None,
        labelled_splits: list[str] | None,
    ) -> None:
        if not fields:
            raise DataError(f"data set '{self.kind}' needs at least one field")
        if label is None and labelled_splits:
            raise DataError(f"labelled_splits names {', '.join(labelled_splits)}, but 'label' names no column")
        self.path, self.inputs, self.label, self.division = path, dict(fields), label, split
        self.labelled_splits = labelled_splits
        self.columns = {name: name if field.column is None else field.column for name, field in fields.items()}
        self.tables = self.open_tables()
        self._check_columns()
        self.class_names, self.labels = self._read_labels(classes)

    def open_tables(self) -> dict[str, Table]:
        """Return the tables: by split when the source has splits of its own, else one under the name "all"."""
        raise NotImplementedError

    @cached_property
    def examples(self) -> dict[str, NDArray[Any]]:
        """One decoded value of each field, from the first rows that can be decoded; they fix the shapes."""
        return {name: self._example(name, field) for name, field in self.inputs.items()}

    @cached_property
    def fields(self) -> dict[str, FieldSpec]:  # type: ignore[override]
        """What the batches hold."""
        return {
            key: spec
            for name, field in self.inputs.items()
            for key, spec in field.specs(name, self.examples[name]).items()
        }

    def load_splits(self) -> dict[str, Split]:
        """Divide the rows."""
        parts = self._divide()
        missing = [name for name in ("train", "val", "test") if name not in parts]
        if missing:
            raise DataError(f"{self.path}: no split {', '.join(missing)}: {SPLIT_HELP}")
        for name in self.labelled_splits or ():
            if name not in parts:
                raise DataError(f"labelled_splits: no split '{name}'{did_you_mean(name, parts)}")
        offsets = dict(zip(self.tables, np.cumsum([0, *map(len, self.tables.values())]).tolist(), strict=False))
        order = sorted(parts, key=lambda name: ("train", "val", "test", name).index(name))
        return {name: self._split(name, *parts[name], offsets) for name in order}

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return how a picture is resized and scaled, which tokenizer reads a text, what a wave was sampled at."""
        source = self.inputs.get(field)
        if isinstance(source, ImageField):
            return {"mean": source.mean, "std": source.std, "resize": source.resize}
        if isinstance(source, TextField):
            return {"tokenizer": source.tokenizer.recipe()}
        if isinstance(source, AudioField):
            return {"sample_rate": source.sample_rate, "log_mel": source.log_mel is not None}
        return {}

    def identity(self) -> dict[str, Any]:
        """Return options and what the tables say of their content."""
        return {
            "files": {name: table.identity() for name, table in self.tables.items()},
            "fields": {name: field.identity() | {"column": self.columns[name]} for name, field in self.inputs.items()},
            "classes": self.class_names,
            "labels": {name: digest(labels) for name, labels in self.labels.items()},
        } | ({} if self.labelled_splits is None else {"labelled_splits": self.labelled_splits})

    def has_labels(self, split: str) -> bool:
        """Return whether the rows of a split have labels."""
        return self.label is not None and (self.labelled_splits is None or split in self.labelled_splits)

    def _fractions(self) -> dict[str, float]:
        options = self.division if isinstance(self.division, Mapping) else {}
        return {
            split_name(name) or name: float(value)
            for name, value in options.items()
            if name != "seed" and isinstance(value, int | float)
        }

    def needs_label(self, table: str) -> bool:
        """Return whether a split that is made of the rows of a table has labels."""
        if self.label is None or self.labelled_splits is None or table == ALL:
            return self.label is not None
        drawn = {table, *(self._fractions() if table == "train" else ())}
        return not drawn.isdisjoint(self.labelled_splits)

    def _check_columns(self) -> None:
        wanted = {f"field '{name}'": column for name, column in self.columns.items()}
        if isinstance(self.division, str):
            wanted["split"] = self.division
        problems = []
        for key, table in self.tables.items():
            uses = wanted | ({"label": self.label} if self.label is not None and self.needs_label(key) else {})
            problems += [
                f"{table.name}: no column '{column}' ({use}){did_you_mean(column, table.columns)}"
                for use, column in uses.items()
                if not table.has_column(column)
            ]
        if problems:
            columns = ", ".join(next(iter(self.tables.values())).columns)
            raise DataError("\n".join([*problems, f"columns: {columns}"]))

    def _read_labels(self, classes: list[str] | None) -> tuple[list[str], dict[str, Labels]]:
        """Return class names and the labels of the tables that have any."""
        if classes is not None and len(classes) < 2:
            raise DataError(f"classes: expected at least 2 names, found {classes}")
        label = self.label
        if label is None:
            return list(classes or ()), {}
        tables = {key: table for key, table in self.tables.items() if self.needs_label(key)}
        raw = {key: clean_labels(table.column(label)) for key, table in tables.items()}
        in_file = next((names for table in tables.values() if (names := table.class_names(label))), None)
        declared = in_file if classes is None else classes
        names = find_classes({tables[key].name: values for key, values in raw.items()}, declared, label)
        known = declared is not None
        return names, {key: encode_labels(values, names, known, label, tables[key].name) for key, values in raw.items()}

    def _divide(self) -> dict[str, tuple[str, Ids]]:
        """Return table name and rows of each split."""
        whole = {name: (name, np.arange(len(table))) for name, table in self.tables.items()}
        if isinstance(self.division, str):
            if list(self.tables) != [ALL]:
                raise DataError(f"{self.path} has splits of its own ({', '.join(self.tables)}): leave out 'split'")
            values = self.tables[ALL].column(self.division)
            parts = rows_by_column(values, self.division, self.tables[ALL].name)
            return {name: (ALL, rows) for name, rows in parts.items()}
        fractions = self._fractions()
        if not fractions:
            if ALL in whole:
                raise DataError(f"{self.path} has no splits of its own: {SPLIT_HELP}")
            return whole
        base = ALL if ALL in whole else "train"
        taken = sorted(fractions.keys() & (whole.keys() | {"train"}))
        if taken:
            raise DataError(f"split: no fraction can be given for {', '.join(taken)}, which the other rows make up")
        seed = self.division.get("seed", 0) if isinstance(self.division, Mapping) else 0
        if not isinstance(seed, int):
            raise DataError(f"split: seed: expected a whole number, found {seed!r}")
        strata = self.labels.get(base, np.zeros(len(self.tables[base]), dtype=np.int64))
        drawn = draw_rows(strata, fractions, seed)
        others = {name: part for name, part in whole.items() if name != base}
        return {name: (base, rows) for name, rows in drawn.items()} | others

    def _split(self, name: str, table_name: str, rows: Ids, offsets: Mapping[str, int]) -> Split:
        table, ids = self.tables[table_name], rows + offsets[table_name]
        labels = self.labels[table_name][rows] if self.has_labels(name) else None
        unlabelled = np.flatnonzero(np.empty(0) if labels is None else labels < 0)
        if name != "train" and len(unlabelled):
            raise DataError(
                f"{table.name} row {rows[unlabelled[0]]}: empty label in split '{name}'; "
                "only train may have unlabelled rows"
            )
        return TableSplit(name, ids, labels, self.inputs, self.columns, self.examples, table, rows)

    def _example(self, name: str, field: Field) -> NDArray[Any]:
        reason = "the table is empty"
        for table in self.tables.values():
            for row in range(min(PROBED_ROWS, len(table))):
                [value] = table.read(np.array([row]), [self.columns[name]])[self.columns[name]]
                try:
                    return field.decode(usable(value), table.folder)
                except DataError as error:
                    reason = str(error)
        raise DataError(
            f"{self.path}: field '{name}' can't be read in the first {PROBED_ROWS} rows; the last: {reason}"
        )


def named_tables(division: Division | Mapping[str, Any]) -> dict[str, Any]:
    """Return the sources that a `split` mapping names, by the usual names of splits; fractions and seed are left out.

    Raises:
        DataError: an unknown split, or sources without one for train.
    """
    if not isinstance(division, Mapping):
        return {}
    wrong = [name for name in division if name != "seed" and split_name(name) is None]
    if wrong:
        raise DataError(f"split: {', '.join(wrong)}: unknown; expected train, val, test, test_... or seed")
    named = {split_name(k) or k: v for k, v in division.items() if not isinstance(v, int | float)}
    if named and "train" not in named:
        raise DataError(f"split: files are given for {', '.join(named)}, but none for train")
    return named
