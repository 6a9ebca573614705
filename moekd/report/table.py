"""The results as rows: student, baselines and teachers on each test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .run import mapping, number

Role = Literal["student", "baseline", "teacher"]
ORDER: dict[Role, int] = {"student": 0, "baseline": 1, "teacher": 2}


@dataclass(frozen=True)
class Row:
    """One model on one split; shares in [0, 1], loss in nats, NaN where unknown; `title` says what the model is.

    `headline` is the number that models are compared by: mIoU for dense results, else accuracy.
    """

    split: str
    model: str
    title: str
    role: Role
    accuracy: float
    balanced_accuracy: float
    weighted_f1: float
    loss: float
    calibration_error: float
    miou: float
    parameters: int | None
    n: int | None

    @property
    def dense(self) -> bool:
        """Whether the labels are maps of pixels."""
        return not math.isnan(self.miou)

    @property
    def headline(self) -> float:
        """mIoU for dense results, else accuracy."""
        return self.miou if self.dense else self.accuracy


def results_table(results: Mapping[str, Any], teachers: Iterable[str] = ()) -> list[Row]:
    """Return one row a split and model: the student, then baselines from best to worst, then teachers likewise.

    Args:
        results: results.json; the sizes of the models are its part `parameters`, what they are its part `titles`.
        teachers: names of the teachers in the config. They, the names in `results["teachers"]`, and the routed
            variants are teachers; "student" is the student; all others are baselines.
    """
    known = {str(name) for name in [*teachers, *(results.get("teachers") or [])]}
    variants = mapping(results.get("routing")).get("variants") or []
    known |= {str(variant) for variant in variants} | {str(variant).split("/")[0] for variant in variants}
    rows = [
        _row(results, str(split), str(model), mapping(metrics), known)
        for split, models in mapping(results.get("test")).items()
        for model, metrics in mapping(models).items()
    ]
    splits = list(dict.fromkeys(row.split for row in rows))
    splits.sort(key=lambda split: split != "test")
    return sorted(rows, key=lambda row: (splits.index(row.split), ORDER[row.role], -_or_lowest(row.headline)))


def best(rows: Iterable[Row], role: Role, split: str) -> Row | None:
    """Return the row with the highest headline number of a role on a split, if there is one."""
    candidates = [r for r in rows if r.role == role and r.split == split and not math.isnan(r.headline)]
    return max(candidates, key=lambda row: row.headline, default=None)


def percent(value: float, digits: int = 1) -> str:
    """Format a share as a percentage; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f}%"


def decimal(value: float, digits: int = 3) -> str:
    """Format a number; "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def points(value: float, digits: int = 1) -> str:
    """Format a difference of shares in percentage points with its sign; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:+.{digits}f}"


def count(value: float | None) -> str:
    """Format a count with thousands separators; "-" for unknown."""
    return "-" if value is None or math.isnan(value) else f"{int(value):,}"


def span(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    """Format an interval; "-" where there is none."""
    return "-" if low is None or high is None else f"{form(low)} to {form(high)}"


def p_value(p: float | None) -> str:
    """Format a p-value; "-" where there is none."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def print_table(results: Mapping[str, Any], teachers: Iterable[str] = (), console: Console | None = None) -> None:
    """Print one table a split to the terminal."""
    console = console or Console()
    rows = results_table(results, teachers)
    if not rows:
        console.print("No test results.")
    for split in dict.fromkeys(row.split for row in rows):
        here = [row for row in rows if row.split == split]
        dense = any(row.dense for row in here)
        table = Table(
            title=Text(f"{split} ({count(here[0].n)} {'pixels' if dense else 'samples'})"), title_justify="left"
        )
        table.add_column("Model", overflow="fold")
        table.add_column("Role")
        columns = ["Accuracy", "Balanced", "F1", *(["mIoU"] if dense else []), "Loss", "Parameters"]
        for column in columns:
            table.add_column(column, justify="right")
        for row in here:
            cells = [percent(row.accuracy), percent(row.balanced_accuracy), percent(row.weighted_f1)]
            cells += [percent(row.miou)] if dense else []
            cells += [decimal(row.loss), count(row.parameters)]
            table.add_row(Text(row.model), row.role, *cells, style="bold" if row.role == "student" else "")
        console.print(table)


def _row(results: Mapping[str, Any], split: str, model: str, metrics: Mapping[str, Any], teachers: set[str]) -> Row:
    role: Role = "student" if model == "student" else "teacher" if model in teachers else "baseline"
    parameters, n = number(mapping(results.get("parameters")).get(model)), number(metrics.get("n"))
    if role == "student" and math.isnan(parameters):
        parameters = number(mapping(results.get("student")).get("parameters"))
    return Row(
        split=split,
        model=model,
        title=str(mapping(results.get("titles")).get(model) or model),
        role=role,
        parameters=None if math.isnan(parameters) else int(parameters),
        n=None if math.isnan(n) else int(n),
        **{
            key: number(metrics.get(key))
            for key in ("accuracy", "balanced_accuracy", "weighted_f1", "loss", "calibration_error", "miou")
        },
    )


def _or_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value
