"""Tables on embeddings: retrieval, classes by name and by probes, the way from `test` to other splits, the teachers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .html import Cell, PageTable
from .measures import capital, measure_label
from .run import Run, mapping, number
from .table import Row, count, decimal, known_numbers, percent, points

SHIFTED = ("accuracy", "retrieval_r1", "zero_shot_accuracy", "knn_accuracy", "linear_probe_accuracy")
_ORDER = {"student": 0, "baseline": 1, "teacher": 2}


def embedding_tables(run: Run, rows: Sequence[Row]) -> list[tuple[str, list[PageTable]]]:
    """Return the tables of each split; empty for runs without embeddings."""
    found = []
    for split in dict.fromkeys(row.split for row in rows):
        here = [row for row in rows if row.split == split]
        parts = mapping(mapping(run.results.get("vision_language")).get(split))
        tables = [make(split, here, parts) for make in (retrieval_table, class_table, teacher_table, agreement_table)]
        if known := [table for table in tables if table is not None]:
            found.append((split, known))
    return found


def retrieval_table(split: str, rows: Sequence[Row], parts: Mapping[str, Any]) -> PageTable | None:
    """Return recall at 1, 5, 10 and the median rank, both ways; best first."""
    found = {row.model: mapping(mapping(parts.get(row.model)).get("retrieval")) for row in rows}
    shown = [row for row in rows if found[row.model]]
    if not shown:
        return None
    known = list(dict.fromkeys(key for values in found.values() for key in values))
    ways = [key.removesuffix("_median_rank") for key in known if key.endswith("_median_rank")]
    recalls = {way: sorted((k for k in known if _recall_of(k, way)), key=lambda k: _recall_of(k, way)) for way in ways}
    header = ["Model", "Role"]
    header += [f"{_way(way)} R@{_recall_of(key, way)}" for way in ways for key in recalls[way]]
    header += [f"{_way(way)} median rank" for way in ways]
    shown.sort(key=lambda row: (_ORDER[row.role], -_low(number(found[row.model].get("retrieval_r1")))))
    table = []
    for row in shown:
        values = found[row.model]
        cells = [_name(row), Cell(row.role)]
        cells += [_share(number(values.get(key))) for way in ways for key in recalls[way]]
        ranks = [number(values.get(f"{way}_median_rank")) for way in ways]
        table.append([*cells, *(Cell(count(rank), rank) for rank in ranks)])
    sizes = [found[shown[0].model], *(found[row.model] for row in shown)][0]
    sides = [f"{count(number(sizes[key]))} {_plural(key.removeprefix('n_'))}" for key in sizes if key.startswith("n_")]
    caption = f"{split}: retrieval among {' and '.join(sides)}" if sides else f"{split}: retrieval"
    return PageTable(caption, header, table, _students(shown))


def class_table(split: str, rows: Sequence[Row], parts: Mapping[str, Any]) -> PageTable | None:
    """Return the accuracies without a trained classifier: classes by name, neighbours, linear probe."""
    found = {row.model: mapping(parts.get(row.model)) for row in rows}
    kinds = ("zero_shot", "knn", "linear_probe")
    shown = [row for row in rows if any(mapping(found[row.model].get(kind)) for kind in kinds)]
    if not shown:
        return None
    header = ["Model", "Role", "Zero-shot", "Zero-shot, top 5", "Zero-shot calibration error", "kNN", "Linear probe"]
    shown.sort(key=lambda row: (_ORDER[row.role], -_low(row.number("linear_probe_accuracy"))))
    table = []
    for row in shown:
        zero, knn, linear = (mapping(found[row.model].get(kind)) for kind in kinds)
        error = number(zero.get("calibration_error"))
        cells = [_name(row), Cell(row.role), *(_share(number(zero.get(key))) for key in ("accuracy", "top5_accuracy"))]
        cells += [
            Cell(decimal(error), error),
            _share(number(knn.get("accuracy"))),
            _share(number(linear.get("accuracy"))),
        ]
        table.append(cells)
    fitted = next(
        (mapping(found[r.model].get("knn")) or mapping(found[r.model].get("linear_probe")) for r in shown), {}
    )
    words = (
        f"; probes of frozen embeddings of {count(number(fitted.get('train_rows')))} training rows" if fitted else ""
    )
    return PageTable(f"{split}: classes by name and by probes{words}", header, table, _students(shown))


def teacher_table(split: str, rows: Sequence[Row], parts: Mapping[str, Any]) -> PageTable | None:
    """Return how well a linear map predicts each teacher's embedding from the student's."""
    caption = f"{split}: share of each teacher's variance (R2) that a fresh linear map finds in the embedding"
    return _by_teacher(caption, rows, parts, ("teachers", "r2"), ("Worst teacher", "worst_teacher_r2"))


def agreement_table(split: str, rows: Sequence[Row], parts: Mapping[str, Any]) -> PageTable | None:
    """Return Kendall's tau between each model's and each teacher's order of the model's nearest wrong answers."""
    measured = [mapping(mapping(parts.get(row.model)).get("rank_agreement")) for row in rows]
    k = count(next((number(mapping(one).get("k")) for found in measured for one in found.values()), None))
    caption = f"{split}: order of the {k} nearest wrong answers as each teacher sees it (Kendall's tau, -1 to 1)"
    return _by_teacher(caption, rows, parts, ("rank_agreement", "tau"), ("Mean", "rank_agreement"))


def _by_teacher(
    caption: str, rows: Sequence[Row], parts: Mapping[str, Any], keys: tuple[str, str], whole: tuple[str, str]
) -> PageTable | None:
    """Return a column for each teacher and one of all; None where nothing was measured.

    Args:
        caption, rows, parts: of the table.
        keys: name of the part, and of the value in what it holds about a teacher.
        whole: heading and metric of the last column, by which models of a role are ordered.
    """
    part, key = keys
    heading, metric = whole
    found = {row.model: mapping(mapping(parts.get(row.model)).get(part)) for row in rows}
    shown = [row for row in rows if found[row.model]]
    if not shown:
        return None
    teachers = list(dict.fromkeys(str(name) for row in shown for name in found[row.model]))
    table = []
    shown.sort(key=lambda row: (_ORDER[row.role], -_low(row.number(metric))))
    for row in shown:
        values = [number(mapping(found[row.model].get(name)).get(key)) for name in teachers]
        last = row.number(metric)
        cells = [_name(row), Cell(row.role), *(Cell(decimal(value), value) for value in values)]
        table.append([*cells, Cell(decimal(last), last)])
    return PageTable(caption, ["Model", "Role", *teachers, heading], table, _students(shown))


def shift_table(rows: Sequence[Row]) -> PageTable | None:
    """Return the measures on `test` and how much of them is lost on every other split; None for a single split."""
    splits = list(dict.fromkeys(row.split for row in rows))
    if len(splits) < 2 or splits[0] != "test":
        return None
    measures = known_numbers([row for row in rows if row.role == "student"], _with_headline(rows))
    by_place = {(row.split, row.model): row for row in rows}
    table: list[list[Cell]] = []
    strong: list[int] = []
    for measure in measures:
        here = [row for row in rows if row.split == "test" and not math.isnan(row.number(measure))]
        for row in sorted(here, key=lambda row: (_ORDER[row.role], -row.number(measure))):
            base = row.number(measure)
            cells = [Cell(measure_label(measure)), _name(row), Cell(row.role), _share(base)]
            for split in splits[1:]:
                other = by_place.get((split, row.model))
                value = math.nan if other is None else other.number(measure)
                cells.append(Cell(points(value - base), value - base, "" if math.isnan(value) else percent(value)))
            strong += [len(table)] if row.role == "student" else []
            table.append(cells)
    header = ["Measure", "Model", "Role", "test", *(f"{split}, points" for split in splits[1:])]
    caption = "from test to other splits: difference in points"
    return PageTable(caption, header, table, frozenset(strong)) if table else None


def _with_headline(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys([*(row.measure for row in rows[:1]), *SHIFTED]))


def _recall_of(key: str, way: str) -> int:
    """Return the k of a recall of one way, 0 for other keys."""
    end = key.removeprefix(f"{way}_r") if key.startswith(f"{way}_r") else ""
    return int(end) if end.isdigit() else 0


def _way(way: str) -> str:
    return capital(way.replace("_", " "))


def _plural(word: str) -> str:
    return {"image": "pictures", "text": "texts", "audio": "sounds"}.get(word, f"{word}s")


def _name(row: Row) -> Cell:
    return Cell(row.model, detail=row.title if row.title != row.model else "")


def _share(value: float) -> Cell:
    return Cell(percent(value), value)


def _students(rows: Iterable[Row]) -> frozenset[int]:
    return frozenset(index for index, row in enumerate(rows) if row.role == "student")


def _low(value: float) -> float:
    return -math.inf if math.isnan(value) else value
