"""The results as rows: student, baselines and teachers on each test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .measures import HEADLINES, capital, known_measures, measure_label
from .run import mapping, number

Role = Literal["student", "baseline", "teacher"]
OWN = ("accuracy", "balanced_accuracy", "weighted_f1", "loss", "calibration_error", "miou")
#: Measures of embeddings for which a narrow table has room.
SHORT = ("image_to_text_r1", "text_to_image_r1", "zero_shot_accuracy", "knn_accuracy", "linear_probe_accuracy")
_SHORT = {"balanced_accuracy": "Balanced", "weighted_f1": "F1", "loss": "Loss"}
ORDER: dict[Role, int] = {"student": 0, "baseline": 1, "teacher": 2}


@dataclass(frozen=True)
class Row:
    """One model on one split; shares in [0, 1], loss in nats, NaN where unknown; `title` says what the model is.

    `headline` is the number that models are compared by, `measure` its name; `numbers` holds every number that was
    measured, by the names of results.json.
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
    measure: str = "accuracy"
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def dense(self) -> bool:
        """Whether the labels are maps of pixels."""
        return not math.isnan(self.miou)

    @property
    def headline(self) -> float:
        """The number that models are compared by."""
        return self.number(self.measure)

    @property
    def label(self) -> str:
        """Name of the measure for people."""
        return measure_label(self.measure)

    def number(self, name: str) -> float:
        """Return a number by its name in results.json; NaN where it was not measured."""
        own: float = getattr(self, name) if name in OWN else self.numbers.get(name, math.nan)
        return own


def results_table(results: Mapping[str, Any], teachers: Iterable[str] = ()) -> list[Row]:
    """Return one row a split and model: the student, then baselines from best to worst, then teachers likewise.

    Args:
        results: results.json; the sizes of the models are its part `parameters`, what they are its part `titles`, and
            `headline` names the number that they are compared by; without it, the first of `HEADLINES` that is known
            of the student (of any model, where there is none).
        teachers: names of the teachers in the config. They, the names in `results["teachers"]`, and the routed
            variants are teachers; "student" is the student; all others are baselines.
    """
    known = {str(name) for name in [*teachers, *(results.get("teachers") or [])]}
    variants = mapping(results.get("routing")).get("variants") or []
    known |= {str(variant) for variant in variants} | {str(variant).split("/")[0] for variant in variants}
    measure = str(results.get("headline") or _headline(mapping(results.get("test"))))
    rows = [
        _row(results, str(split), str(model), mapping(metrics), known, measure)
        for split, models in mapping(results.get("test")).items()
        for model, metrics in mapping(models).items()
    ]
    splits = list(dict.fromkeys(row.split for row in rows))
    splits.sort(key=lambda split: split != "test")
    return sorted(rows, key=lambda row: (splits.index(row.split), ORDER[row.role], -_or_lowest(row.headline)))


def _headline(test: Mapping[str, Any]) -> str:
    models = [(str(name), mapping(metrics)) for split in test.values() for name, metrics in mapping(split).items()]
    students = [metrics for name, metrics in models if name == "student"]
    found = known_measures(students, HEADLINES) or known_measures([metrics for _, metrics in models], HEADLINES)
    return found[0] if found else "accuracy"


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
        shares = known_numbers(here, ("accuracy", "balanced_accuracy", "weighted_f1", "miou", *SHORT))
        loss = known_numbers(here, ("loss",))
        for name in [*shares, *loss]:
            table.add_column(_SHORT.get(name) or capital(measure_label(name)), justify="right")
        table.add_column("Parameters", justify="right")
        for row in here:
            cells = [*(percent(row.number(name)) for name in shares), *(decimal(row.number(name)) for name in loss)]
            cells.append(count(row.parameters))
            table.add_row(Text(row.model), row.role, *cells, style="bold" if row.role == "student" else "")
        console.print(table)


def known_numbers(rows: Sequence[Row], names: Iterable[str]) -> list[str]:
    """Return the names of the numbers that some row has."""
    return [name for name in names if any(not math.isnan(row.number(name)) for row in rows)]


def _row(
    results: Mapping[str, Any], split: str, model: str, metrics: Mapping[str, Any], teachers: set[str], measure: str
) -> Row:
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
        measure=measure,
        numbers={str(key): number(value) for key, value in metrics.items() if number(value) == number(value)},
        **{key: number(metrics.get(key)) for key in OWN},
    )


def _or_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value
