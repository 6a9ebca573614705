"""`files`: the user's own multimodal data, described in YAML alone.

Underneath are Hugging Face datasets, memory-mapped from disk: a table is never held in memory as a whole. Media are
decoded when a batch is read; a value that can't be decoded is a bad sample, with its file and row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, did_you_mean
from .dataset import DATASETS, Batch, Dataset, FieldSpec, Ids, Split
from .fields import Field
from .fields.audio import AudioField
from .fields.image import ImageField
from .fields.text import TextField
from .files_labels import Labels, clean_labels, draw_rows, encode_labels, find_classes, rows_by_column
from .files_source import ALL, Format, open_source, split_name
from .fingerprint import digest, file_digest
from .tables import Table

SPLIT_HELP = (
    "set 'split' to a column that says train, val or test, to fractions {val: 0.1, test: 0.2, seed: 0}, "
    "or to files {train: a.csv, val: b.csv, test: c.csv}"
)
PROBED_ROWS = 20


@DATASETS.register("files")
class Files(Dataset):
    """Tables (parquet, arrow, json, csv) with media beside them, or folders of pictures or recordings.

    Args:
        path: file, glob or folder; with `split` as files, the folder to which these are relative.
        fields: the batch fields, by name.
        label: column with the class: integers or texts. Empty values in train are unlabelled rows. Folders of media
            have the column "label" with the names of their sub-folders.
        split: column that says train, val, test (or test_...) for each row; or a mapping with a file name or a fraction
            for each split, and `seed` for the fractions (drawn from the train rows, class by class); None takes the
            sub-folders train, val, test of the source.
        format: format of the files; "auto" goes by their suffix.
        classes: class names in order; None sorts the values of the label column.
        streaming: read parquet in place, row group by row group, instead of through a memory-mapped copy in the cache
            of Hugging Face datasets. Batches are then shuffled within windows of 4 row groups.
        cache_dir: folder of the memory-mapped copies.

    Raises:
        DataError: missing columns (all of them, with the nearest names), an unreadable file, an empty split, a label
            out of range, fewer than 2 classes.
    """

    kind = "files"

    def __init__(
        self,
        path: str,
        fields: dict[str, Field],
        label: str = "label",
        split: str | dict[str, str | int | float] | None = None,
        format: Format = "auto",
        classes: list[str] | None = None,
        streaming: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        if not fields:
            raise DataError("data set 'files' needs at least one field")
        self.path, self.inputs, self.label, self.division = path, dict(fields), label, split
        self.format: Format = format
        self.streaming, self.cache_dir = streaming, cache_dir
        self.columns = {name: name if field.column is None else field.column for name, field in fields.items()}
        self.tables = self._open()
        self._check_columns()
        raw = {name: clean_labels(table.column(label)) for name, table in self.tables.items()}
        in_file = next((names for t in self.tables.values() if (names := t.class_names(label))), None)
        declared = in_file if classes is None else classes
        by_file = {self.tables[name].name: values for name, values in raw.items()}
        self.class_names = find_classes(by_file, declared, label)
        self.labels = {
            name: encode_labels(values, self.class_names, declared is not None, label, self.tables[name].name)
            for name, values in raw.items()
        }

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
        """Return options and checksums: sha256 of data files, names and sizes of the files in folders of media."""
        return {
            "files": {name: [_file_identity(file) for file in table.files] for name, table in self.tables.items()},
            "fields": {name: field.identity() | {"column": self.columns[name]} for name, field in self.inputs.items()},
            "classes": self.class_names,
            "labels": {name: digest(labels) for name, labels in self.labels.items()},
        }

    def _open(self) -> dict[str, Table]:
        named = self._named_files()
        if named:
            tables = {}
            for name, file in named.items():
                opened = open_source(str(Path(self.path) / file), self.format, self.streaming, self.cache_dir)
                tables[name] = opened.get(ALL) or opened[name]
            return tables
        return open_source(self.path, self.format, self.streaming, self.cache_dir)

    def _named_files(self) -> dict[str, str]:
        if not isinstance(self.division, dict):
            return {}
        wrong = [name for name in self.division if name != "seed" and split_name(name) is None]
        if wrong:
            raise DataError(f"split: {', '.join(wrong)}: unknown; expected train, val, test, test_... or seed")
        named = {split_name(k) or k: v for k, v in self.division.items() if isinstance(v, str)}
        if named and "train" not in named:
            raise DataError(f"split: files are given for {', '.join(named)}, but none for train")
        return named

    def _check_columns(self) -> None:
        wanted = {f"field '{name}'": column for name, column in self.columns.items()} | {"label": self.label}
        if isinstance(self.division, str):
            wanted["split"] = self.division
        problems = [
            f"{table.name}: no column '{column}' ({use}){did_you_mean(column, table.columns)}"
            for table in self.tables.values()
            for use, column in wanted.items()
            if column not in table.columns
        ]
        if problems:
            columns = ", ".join(next(iter(self.tables.values())).columns)
            raise DataError("\n".join([*problems, f"columns: {columns}"]))

    def _divide(self) -> dict[str, tuple[str, Ids]]:
        """Return table name and rows of each split."""
        whole = {name: (name, np.arange(len(table))) for name, table in self.tables.items()}
        if isinstance(self.division, str):
            if list(self.tables) != [ALL]:
                raise DataError(f"{self.path} has splits of its own ({', '.join(self.tables)}): leave out 'split'")
            values = self.tables[ALL].column(self.division)
            parts = rows_by_column(values, self.division, self.tables[ALL].name)
            return {name: (ALL, rows) for name, rows in parts.items()}
        options = self.division or {}
        fractions = {k: float(v) for k, v in options.items() if k != "seed" and not isinstance(v, str)}
        if not fractions:
            if ALL in whole:
                raise DataError(f"{self.path} has no splits of its own: {SPLIT_HELP}")
            return whole
        base = ALL if ALL in whole else "train"
        taken = sorted({split_name(name) or name for name in fractions} & (whole.keys() | {"train"}))
        if taken:
            raise DataError(f"split: no fraction can be given for {', '.join(taken)}, which the other rows make up")
        named = {split_name(name) or name: part for name, part in fractions.items()}
        drawn = draw_rows(self.labels[base], named, int(options.get("seed", 0)))
        others = {name: part for name, part in whole.items() if name != base}
        return {name: (base, rows) for name, rows in drawn.items()} | others

    def _split(self, name: str, table_name: str, rows: Ids, offsets: Mapping[str, int]) -> Split:
        table, labels = self.tables[table_name], self.labels[table_name][rows]
        unlabelled = np.flatnonzero(labels < 0)
        if name != "train" and len(unlabelled):
            raise DataError(
                f"{table.name} row {rows[unlabelled[0]]}: empty label in split '{name}'; "
                "only train may have unlabelled rows"
            )
        return FilesSplit(name, rows + offsets[table_name], labels, self, table, rows)

    def _example(self, name: str, field: Field) -> NDArray[Any]:
        reason = "the table is empty"
        for table in self.tables.values():
            rows = np.arange(min(PROBED_ROWS, len(table)))
            for value in table.read(rows, [self.columns[name]])[self.columns[name]]:
                try:
                    return field.decode(value, table.folder)
                except DataError as error:
                    reason = str(error)
        raise DataError(
            f"{self.path}: field '{name}' can't be read in the first {PROBED_ROWS} rows; the last: {reason}"
        )


class FilesSplit(Split):
    """Some rows of a table, decoded when they are read."""

    def __init__(self, name: str, ids: Ids, labels: Labels, data: Files, table: Table, rows: Ids) -> None:
        blocks = None if table.blocks is None else table.blocks[rows]
        super().__init__(name, ids, labels, data.fields, blocks=blocks)
        self.inputs, self.columns, self.examples = data.inputs, data.columns, data.examples
        self.source, self.rows = table, rows

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Read and decode rows; those with a value that can't be decoded are returned as bad."""
        index = np.asarray(rows, dtype=np.int64)
        records = self.source.read(self.rows[index], list(dict.fromkeys(self.columns.values())))
        decoded: dict[str, list[NDArray[Any] | None]] = {}
        bad: dict[int, str] = {}
        for name, field in self.inputs.items():
            values = decoded[name] = []
            for position, value in enumerate(records[self.columns[name]]):
                try:
                    values.append(self._decode(name, field, value))
                except DataError as error:
                    values.append(None)
                    bad.setdefault(position, f"field '{name}': {error}")
        good = np.array([position for position in range(len(index)) if position not in bad], dtype=np.int64)
        batch = self._frame(index[good])
        for name, field in self.inputs.items():
            example = self.examples[name]
            stacked = np.empty((len(good), *example.shape), dtype=example.dtype)
            for place, position in enumerate(good):
                stacked[place] = decoded[name][position]
            batch.update(field.transform(name, stacked))
        return batch, dict(sorted(bad.items()))

    def _decode(self, name: str, field: Field, value: Any) -> NDArray[Any]:
        array, example = field.decode(value, self.source.folder), self.examples[name]
        if array.shape != example.shape:
            raise DataError(f"shape {array.shape} differs from that of the first row, {example.shape}")
        return array

    def describe(self, sample_id: int) -> str:
        """Return file, row and the paths in that row."""
        row = int(self.rows[self.row_of(sample_id)])
        paths = [self.columns[name] for name, field in self.inputs.items() if field.holds_paths]
        record = self.source.read(np.array([row]), paths) if paths else {}
        shown = [values[0].get("path") if isinstance(values[0], dict) else values[0] for values in record.values()]
        return ", ".join([f"{self.source.name} row {row}", *(path for path in shown if isinstance(path, str))])


def _file_identity(path: Path) -> Any:
    if path.is_file():
        return file_digest(path)
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    return digest([[str(file.relative_to(path)), file.stat().st_size] for file in inside])
