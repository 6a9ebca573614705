"""The interval plot: seeds as dots, mean and interval of each arm below each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .figures import new_figure

PITCH = 0.42
CROWDED_PITCH = 0.28


@dataclass(frozen=True)
class Entry:
    """One line of the plot; `marker` stands for the mean."""

    label: str
    values: Sequence[float]
    mean: float
    low: float | None
    high: float | None
    color: str
    marker: str


def interval_figure(
    entries: Sequence[Entry],
    label: str,
    form: Callable[[float], str],
    line: float | None = None,
    line_label: str = "",
) -> Figure:
    """Draw the entries from the bottom to the top; more than 12 stand closer together.

    Args:
        entries: one line each, the first at the bottom.
        label: what the x axis shows.
        form: formats the numbers of the axis.
        line: value of a vertical line, with its name `line_label`.
    """
    pitch = PITCH if len(entries) <= 12 else CROWDED_PITCH
    below = 0.2 if len(entries) <= 12 else 0.0
    figure, (axis,) = new_figure(1.3 + pitch * max(1, len(entries)))
    if line is not None:
        axis.axvline(line, color="#777777", lw=1.1, ls="--", zorder=0.5, label=line_label)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    for height, entry in enumerate(entries):
        dots = [height - below] * len(entry.values)
        axis.plot(entry.values, dots, "o", color=entry.color, ms=4, alpha=0.5, mew=0, zorder=2)
        middle = height + 0.4 * below
        if entry.low is not None and entry.high is not None:
            axis.hlines(middle, entry.low, entry.high, color=entry.color, lw=2.2 if below else 1.7, zorder=2.5)
        axis.plot([entry.mean], [middle], entry.marker, color=entry.color, ms=6.5 if below else 6, mec="white", mew=0.6)
    axis.set_yticks(range(len(entries)), [entry.label for entry in entries], fontsize=8.5)
    axis.set_ylim(-0.6, max(0.6, len(entries) - 0.4))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_xlabel(label)
    return figure
