"""The figure of the performance benchmark: O(T) against T."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

COLOURS = {
    "cached": "#1b6ca8",
    "live routed": "#2a9d5c",
    "live shared": "#d98e04",
    "every variant in full": "#b33a3a",
}


def write_figure(rows: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """Draw the overheads among the rows, one panel a case; return the file, or None where there are none."""
    points: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        if row["part"] == "overhead" and (found := re.fullmatch(r"O\((\d+)\)", row["measure"])):
            points.setdefault(row["case"], {}).setdefault(row["arm"], {})[int(found[1])] = row["value"]
    if not points:
        return None
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "performance", "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.2 * len(points), 3.4), layout="constrained")
        axes = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
        for axis, (case, arms) in zip(axes, points.items(), strict=True):
            for arm, values in arms.items():
                axis.plot([*values], [*values.values()], "o-", color=COLOURS.get(arm), label=arm, markersize=4)
            counts = sorted({count for values in arms.values() for count in values})
            axis.axhline(1, color="#888888", linewidth=0.8)
            axis.set(xscale="log", yscale="log", title=case, xlabel="teacher variants T")
            axis.xaxis.set_major_locator(FixedLocator(counts))
            axis.set_xticklabels([str(count) for count in counts])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 32]))
            axis.set_yticklabels(["1", "2", "4", "8", "16", "32"])
            axis.yaxis.set_minor_locator(NullLocator())
            axis.title.set_size(9)
            axis.grid(True, linewidth=0.3)
        axes[0].set_ylabel("step / step of the student alone")
        axes[0].legend(frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Date": None})
    return path
