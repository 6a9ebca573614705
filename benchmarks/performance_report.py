"""The tables and the figure of the performance benchmark."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_text
from .performance_figure import write_figure
from .performance_timing import Interval

COLUMNS = (
    "part",
    "case",
    "arm",
    "measure",
    "value",
    "low",
    "high",
    "unit",
    "target",
    "machine",
    "precision",
    "load",
)
TITLES = {
    "overhead": "A step with T teacher variants over a step of the student alone",
    "routing": "Four live teachers",
    "stages": "The stages of MST-Distill at the shapes of AV-MNIST, against the published loop",
    "masks": "One mask",
    "cache": "Cached signals",
    "memory": "Memory",
}


def read_rows(folder: Path, machine: str) -> list[dict[str, Any]]:
    """Return the lines of an earlier table that were measured on the same machine."""
    file = folder / "performance.csv"
    if not file.is_file():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        rows = [dict(line) for line in csv.DictReader(lines)]
    return [row | {k: float(row[k]) for k in ("value", "low", "high")} for row in rows if row["machine"] == machine]


def write_report(rows: Sequence[dict[str, Any]], folder: Path, command: str) -> Path:
    """Write `performance.csv`, `performance.md` and, with overheads among the rows, `performance.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: [*TITLES].index(row["part"]))
    with open(folder / "performance.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({key: _rounded(row[key]) for key in COLUMNS} for row in ordered)
    write_figure(ordered, folder / "performance.svg")
    return write_text(folder / "performance.md", markdown(ordered, command))


def markdown(rows: Sequence[dict[str, Any]], command: str) -> str:
    """Return the tables, one a part."""
    about = rows[0]
    time = "Processor time" if "thread" in about["machine"] else "Time on the wall, the device finished"
    lines = [
        f"Made by `{command}` on {about['machine']}, precision {about['precision']}.",
        "",
        f"{time}; arms take turns; medians with 95 % intervals of the paired rounds. The data are noise.",
    ]
    for part in dict.fromkeys(row["part"] for row in rows):
        here = [row for row in rows if row["part"] == part]
        lines += ["", f"### {TITLES[part]}", "", f"Load before the start: {here[0]['load']}.", ""]
        lines += ["| case | arm | measure | value | target | met |", "|---|---|---|---|---|---|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in here]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    value = Interval(row["value"], row["low"], row["high"])
    text = f"{_number(value.median)}" if math.isnan(value.low) else str(value)
    return [
        *(row["case"], row["arm"], row["measure"]),
        f"{text} {row['unit']}".strip(),
        *(row["target"], met(row["target"], row["value"])),
    ]


def met(target: str, value: float) -> str:
    """Tell whether a value meets a target such as "at most 1.10" or "at least 3"."""
    words = target.split()
    if len(words) != 3:
        return ""
    limit = float(words[2])
    return "yes" if (value <= limit if words[1] == "most" else value >= limit) else "no"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
