"""Figures by class: who taught which class, and where the student gains or loses against a baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from .figures import BLUE, ORANGE, Drawing, finish, new_figure, shorten
from .run import Run, mapping, number, numbers
from .table import Row

LIMIT = 30
USE_COLORS = LinearSegmentedColormap.from_list("use", ["#F7FBFF", "#6BAED6", "#08306B"]).with_extremes(bad="#DDDDDD")


@dataclass(frozen=True)
class ClassRow:
    """One class: its samples in the split and the accuracy (recall) of student and baseline; NaN where unknown."""

    name: str
    n: float
    student: float
    baseline: float

    @property
    def difference(self) -> float:
        """Student minus baseline."""
        return self.student - self.baseline


def class_rows(run: Run, student: Row | None, baseline: Row | None) -> list[ClassRow]:
    """Return one row a class of the split that `student` was measured on, in label order."""
    if student is None:
        return []
    models = mapping(mapping(run.results.get("test")).get(student.split))
    accuracy = numbers(mapping(models.get(student.model)).get("per_class_accuracy"))
    sizes = numbers(mapping(models.get(student.model)).get("per_class_n"))
    other = numbers(mapping(models.get(baseline.model)).get("per_class_accuracy")) if baseline else []
    names = class_names(run, len(accuracy))
    return [
        ClassRow(name, _at(sizes, index), _at(accuracy, index), _at(other, index)) for index, name in enumerate(names)
    ]


def class_names(run: Run, size: int) -> list[str]:
    """Return `size` class names; classes without a name are called by their number."""
    given = run.results.get("class_names")
    names = [str(name) for name in given] if isinstance(given, list) else []
    return [names[index] if index < len(names) else f"class {index}" for index in range(size)]


def frequent(rows: Sequence[ClassRow], limit: int = LIMIT) -> tuple[list[int], str]:
    """Return the indices of at most `limit` classes, most frequent first, and a note on the choice.

    Without a choice to make, the classes stay in label order and the note is empty.
    """
    if len(rows) <= limit:
        return list(range(len(rows))), ""
    if any(math.isnan(row.n) for row in rows):
        return list(range(limit)), f"The first {limit} of {len(rows)} classes; class sizes are unknown."
    order = sorted(range(len(rows)), key=lambda index: -rows[index].n)
    return order[:limit], f"The {limit} most frequent of {len(rows)} classes."


def class_accuracy(rows: Sequence[ClassRow], shown: Sequence[int], note: str, baseline: str | None) -> list[Drawing]:
    """Return the dot plot of accuracy by class, student against the best baseline, largest gain first."""
    chosen = [rows[index] for index in shown if not math.isnan(rows[index].student)]
    if not chosen:
        return []
    compare = baseline is not None and any(not math.isnan(row.baseline) for row in chosen)
    chosen.sort(key=lambda row: _or_low(row.difference if compare else row.student))
    figure, (axis,) = new_figure(1.5 + 0.21 * len(chosen))
    heights = range(len(chosen))
    student = [row.student for row in chosen]
    if compare:
        other = [row.baseline for row in chosen]
        axis.hlines(heights, student, other, color="#B5B5B5", lw=1.6, zorder=1)
        axis.scatter(
            other, heights, s=34, facecolor="white", edgecolor=ORANGE, lw=1.8, label=shorten(str(baseline)), zorder=2
        )
    axis.scatter(student, heights, s=34, color=BLUE, label="student", zorder=3)
    axis.set_yticks(heights, [shorten(row.name) for row in chosen], fontsize=8.5)
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.7, len(chosen) - 0.3)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.set_xlabel("accuracy within the class")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    better = sum(row.difference > 0 for row in chosen)
    worse = sum(row.difference < 0 for row in chosen)
    words = f" The student is better in {better} and worse in {worse} classes than {baseline}." if compare else ""
    alt = f"Accuracy of the student in {len(chosen)} classes.{words}"
    caption = "accuracy by class" + (f", student against {baseline}, largest gain on top" if compare else "")
    return [finish(figure, "class-accuracy", "classes", alt, f"{caption}. {note}".strip())]


def teacher_use(run: Run, rows: Sequence[ClassRow]) -> list[Drawing]:
    """Return the heat map of routing shares, class by variant."""
    routing = mapping(run.results.get("routing"))
    variants = [str(name) for name in routing.get("variants") or []]
    by_class = [numbers(shares) for shares in routing.get("by_class") or []]
    if not variants or not by_class or any(len(shares) != len(variants) for shares in by_class):
        return []
    names = class_names(run, len(by_class))
    known = list(rows) if len(rows) == len(names) else [ClassRow(name, math.nan, math.nan, math.nan) for name in names]
    shown, note = frequent(known)
    table = np.array([by_class[index] for index in shown], dtype=np.float64)
    figure, (axis,) = new_figure(1.5 + 0.21 * len(shown))
    axis.imshow(np.ma.masked_invalid(table), cmap=USE_COLORS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axis.grid(False)
    axis.xaxis.tick_top()
    crowded = len(variants) > 3
    axis.set_xticks(
        range(len(variants)),
        [shorten(name, 22) for name in variants],
        rotation=40 if crowded else 0,
        ha="left" if crowded else "center",
        fontsize=8.5,
    )
    axis.set_yticks(range(len(shown)), [shorten(names[index]) for index in shown], fontsize=8.5)
    axis.tick_params(length=0)
    if len(variants) <= 8:
        _annotate(axis, table)
    used = table[np.isfinite(table).all(axis=1)]
    top = ", ".join(variants[index] for index in np.unique(used.argmax(axis=1))) or "none"
    alt = f"Heat map of the share of rows routed to each teacher variant, by class; first in some class: {top}."
    caption = f"who teaches which class: share of a class's rows routed to each variant. {note}".strip()
    return [finish(figure, "teacher-use", "routing", alt, caption)]


def _annotate(axis: Axes, table: NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(table):
        text = "" if math.isnan(share) else f"{100 * share:.0f}%"
        color = "white" if share > 0.55 else "#222222"
        axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)


def _at(values: Sequence[float], index: int) -> float:
    return number(values[index]) if index < len(values) else math.nan


def _or_low(value: float) -> float:
    return -math.inf if math.isnan(value) else value
