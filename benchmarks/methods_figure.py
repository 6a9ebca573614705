"""The figure of the benchmark of published methods: gains with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..evaluation.comparison import Difference

#: Label, colour and marker of a method's difference to what it must beat, and to the student alone.
AGAINST = (("against what it must beat", "#1b6ca8", "o"), ("against the student alone", "#d98e04", "s"))


def write_figure(gains: Sequence[tuple[str, Difference | None, Difference | None]], path: Path) -> Path:
    """Draw a line a method, with its two differences in percent and their 95 % intervals; return the file."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "methods", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.2, 1.3 + 0.42 * len(gains)), layout="constrained")
        axis = figure.subplots()
        for number, (label, colour, marker) in enumerate(AGAINST):
            found = [(place, differences[number]) for place, (_, *differences) in enumerate(gains)]
            known = [(place, difference) for place, difference in found if difference is not None]
            means = [100 * difference.mean for _, difference in known]
            widths = [100 * (0 if d.high is None else d.high - d.mean) for _, d in known]
            places = [place + 0.16 * (2 * number - 1) for place, _ in known]
            axis.errorbar(means, places, xerr=widths, fmt=marker, color=colour, label=label, markersize=5, capsize=2)
        axis.axvline(0, color="#888888", linewidth=0.8)
        axis.set_yticks(range(len(gains)), [gain[0] for gain in gains])
        axis.invert_yaxis()
        axis.set_xlabel("gain in points, mean over seeds with 95 % interval")
        axis.grid(True, axis="x", linewidth=0.3)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Date": None})
    return path
