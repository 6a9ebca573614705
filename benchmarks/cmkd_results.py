"""What the runs of the cross-modal benchmark found, as rows, and the numbers that a user brings to compare with."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..ablation import read_rows
from ..ablation.run import build_program
from ..atomic import write_json
from ..config import load_config, parse_recipe
from ..errors import DataError, did_you_mean
from ..stages.trainable import parameters_of, train_only
from .cmkd import Request, choose, validation_metric

COLUMNS = (
    *("cell", "method", "form", "title", "seed", "split", "weight", "teacher", "status", "reason"),
    *("accuracy", "balanced_accuracy", "weighted_f1", "kappa", "miou", "loss", "validation"),
    *("seconds", "seconds_per_step", "teacher_forwards_per_step", "peak_memory_mb", "peak_memory_of"),
    *("trained_parameters", "student_parameters"),
)
PARAMETERS = "parameters.json"
Row = dict[str, Any]


def read_cmkd(request: Request, runs: Path) -> list[Row]:
    """Return a row for every (cell, method and form, seed, test split), in the order of the suite.

    Cells without any run are left out; a run that failed or is missing has a row without numbers.

    Raises:
        DataError: no run of any cell is there.
    """
    found: list[Row] = []
    for name in request.names:
        folder = runs / name
        if not folder.is_dir():
            continue
        cell = request.suite.data[name]
        methods = {method.title: method for method in request.methods_in(cell)}
        choices = choose(request, name, cell, runs)
        parameters = trained_parameters(folder)
        metric = cell.metric or request.suite.metric
        for row in read_rows(folder):
            method = methods.get(row["arm"])
            if method is None:
                continue
            choice = choices[method.title]
            extra: Row = {"cell": name, "method": method.name, "form": method.form, "title": method.title}
            extra |= {"weight": choice.weight, "teacher": choice.teacher}
            if row["status"] == "done":
                extra["validation"] = validation_metric(folder / row["key"], metric)
                extra |= parameters.get(row["arm"], {})
            found.append(row | extra)
    if not any(row["status"] == "done" for row in found):
        raise DataError(f"no finished run of the benchmark in {runs} for {', '.join(request.names)}")
    return found


def trained_parameters(folder: Path) -> dict[str, dict[str, int]]:
    """Return how many parameters each method of a cell trains at a time, at most, and how many its student has; the
    stage that trains the teachers before, which methods share, does not count.

    They are counted once, from the config of the first finished run of each method, and kept in the folder.
    """
    file = folder / PARAMETERS
    known: dict[str, dict[str, int]] = json.loads(file.read_bytes()) if file.is_file() else {}
    fresh = {}
    for row in read_rows(folder):
        if row["status"] == "done" and row["arm"] not in known and row["arm"] not in fresh:
            fresh[row["arm"]] = _count(folder / row["key"])
    if fresh:
        known |= fresh
        write_json(file, known)
    return known


def _count(run: Path) -> dict[str, int]:
    raw, source = load_config(str(run / "config.yaml"))
    program = build_program(parse_recipe(raw, source), source)
    models, counts = program.models(program.phases[0]), []
    for stage in program.phases[0].stages:
        settings = stage.settings
        if settings.name == "teachers":
            continue
        modules = train_only(models, settings.trains, nn.ModuleList(settings.objectives))
        counts.append(sum(p.numel() for p in parameters_of(modules.values())))
    return {
        "trained_parameters": max(counts),
        "student_parameters": sum(p.numel() for p in models.student.parameters()),
    }


def write_csv(rows: Sequence[Mapping[str, Any]], file: Path) -> Path:
    """Write the rows; numbers have 6 digits, an empty cell is a number that was not measured."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _text(row.get(key)) for key in COLUMNS} for row in rows)
    return file


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def read_published(file: Path, request: Request) -> list[Row]:
    """Return the numbers that a user brings: a CSV file with the columns `cell`, `method`, `value` and, if there are,
    `form`, `sd` and `source`; values are shares in [0, 1].

    Raises:
        DataError: a column is missing, a cell or method is unknown, or a value is no share; with the line.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            lines = list(reader)
            missing = {"cell", "method", "value"} - set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} can't be read as a CSV file: {error}") from error
    if missing:
        raise DataError(f"{file} lacks the columns {', '.join(sorted(missing))}; it needs cell, method, value")
    known = {"cell": list(request.suite.data), "method": [*request.suite.methods, *request.suite.recipes]}
    found = []
    for number, line in enumerate(lines, start=2):
        for column, names in known.items():
            if line[column] not in names:
                hint = did_you_mean(line[column], names) or f"; known: {', '.join(names)}"
                raise DataError(f"{file}, line {number}: no {column} '{line[column]}'{hint}")
        numbers = {}
        for column in ("value", "sd"):
            text = (line.get(column) or "").strip()
            try:
                numbers[column] = float(text) if text else None
            except ValueError as error:
                raise DataError(f"{file}, line {number}: {column} '{text}' is no number") from error
        value = numbers["value"]
        if value is None or not 0 <= value <= 1:
            raise DataError(f"{file}, line {number}: value {value} is no share in [0, 1]; write 0.813 for 81.3 %")
        found.append({key: line.get(key) or "" for key in ("cell", "method", "form", "source")} | numbers)
    return found
