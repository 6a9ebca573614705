"""The rows of an ablation as a CSV file: one line a setting, split, arm and seed, and back."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .measures import known_measures
from .run import mapping, number

Row = Mapping[str, Any]

PLACE = ("setting", "split", "arm", "title", "seed", "status", "reason")
OUTCOMES = ("accuracy", "balanced_accuracy", "weighted_f1", "loss")
COST = ("seconds_per_step", "teacher_forwards_per_step", "seconds", "steps", "peak_memory_mb")
ROUTING = (
    "entropy",
    "load_cv",
    "oracle_weight",
    "oracle_agreement",
    "chance_agreement",
    "chosen_loss",
    "oracle_loss",
    "mean_loss",
)
NAMED = ("shares", "teachers")
COLUMNS = (*PLACE, *OUTCOMES, *COST, *ROUTING, *NAMED)


def rows_to_csv(rows: Sequence[Row], metric: str = "accuracy") -> str:
    """Return the rows as CSV with `COLUMNS` (and measures of embeddings, and the metric), numbers with 6 digits.

    An empty cell is a number that was not measured; `nan` and `inf` are measured ones. `shares` (of the variants) and
    `teachers` (their accuracy on the split) are JSON objects {name: number}.
    """
    extra = known_measures(rows)
    extra += [] if metric in (*COLUMNS, *extra) else [metric]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *extra])
    for row in rows:
        routing = mapping(row.get("routing"))
        shares = dict(zip(routing.get("variants") or (), routing.get("shares") or (), strict=False))
        cells = [_text(row.get(key)) for key in PLACE]
        cells += [_number(row.get(key)) for key in (*OUTCOMES, *COST)]
        cells += [_number(routing.get(key)) for key in ROUTING]
        cells += [_named(shares), _named(mapping(row.get("teachers")))]
        writer.writerow(cells + [_number(row.get(key)) for key in extra])
    return file.getvalue()


def measured(value: Any) -> float:
    """Return a number as the CSV file holds it, with 6 digits, so that tables made from that file are the same."""
    return float(f"{number(value):.6g}")


def ordered(rows: Sequence[Row], settings: Sequence[str] = (), arms: Sequence[str] = ()) -> list[Row]:
    """Sort rows by setting, split (the main one first), arm and seed; names that are not given keep their order."""
    by_setting, by_arm = (
        {name: i for i, name in enumerate(dict.fromkeys(n))}
        for n in (
            [*settings, *(str(row.get("setting")) for row in rows)],
            [*arms, *(str(row.get("arm")) for row in rows)],
        )
    )
    splits = list(dict.fromkeys(["test", *(str(row.get("split")) for row in rows if row.get("split"))]))

    def place(row: Row) -> tuple[float, ...]:
        split = splits.index(str(row["split"])) if row.get("split") else len(splits)
        seed = number(row.get("seed"))
        last = math.inf if math.isnan(seed) else seed
        return by_setting[str(row.get("setting"))], split, by_arm[str(row.get("arm"))], last

    return sorted(rows, key=place)


def read_ablation_csv(path: Path) -> list[dict[str, Any]]:
    """Read the rows of an ablation back from its CSV file; tables can be made from them again.

    What the file does not hold (routing by class and over training, configs) is absent from the rows.

    Raises:
        DataError: the file can't be read, a column is missing, or a cell is not what its column holds.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in (*PLACE, *OUTCOMES) if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} is not the table of an ablation: it lacks the columns {', '.join(missing)}")
            return [_row(path, reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the table of an ablation can't be read from {path}: {error}") from error


def _row(path: Path, line: int, cells: dict[str, Any]) -> dict[str, Any]:
    if None in cells or None in cells.values():
        raise DataError(f"{path}, line {line}: expected as many cells as the header has columns")
    try:
        row: dict[str, Any] = {key: cells[key] for key in PLACE} | {
            "seed": int(cells["seed"]) if cells["seed"] else None
        }
        others = [key for key in cells if key not in (*PLACE, *ROUTING, *NAMED)]
        row |= {key: _parsed(cells[key]) for key in others}
        shares, teachers = (json.loads(cells.get(key) or "{}") for key in NAMED)
    except ValueError as error:
        raise DataError(f"{path}, line {line}: {error}") from error
    routing: dict[str, Any] = {key: _parsed(cells[key]) for key in ROUTING if cells.get(key)}
    if shares or routing:
        routing |= {"variants": list(shares), "shares": list(shares.values())}
    return row | {"routing": routing or None, "teachers": teachers}


def _parsed(cell: str) -> float | None:
    return float(cell) if cell else None


def _number(value: Any) -> str:
    return "" if value is None or isinstance(value, str) else f"{measured(value):.6g}"


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def _named(values: Mapping[str, Any]) -> str:
    known = {str(name): measured(value) for name, value in values.items()}
    kept = {name: value for name, value in known.items() if math.isfinite(value)}
    return json.dumps(kept, ensure_ascii=False) if kept else ""
