"""Tables over seeds: mean, 95 % interval, and the paired difference to a reference arm."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..evaluation.comparison import compare

COLUMNS = ("config", "variant", "split", "arm", "title", "kind", "seed", "accuracy", "loss")


def summarise(
    rows: Sequence[dict[str, Any]], reference: str = "alone", metric: str = "accuracy"
) -> list[dict[str, Any]]:
    """Return a row for every (config, variant, split, arm): mean, interval, and paired difference to the reference arm.

    The p-values of one (config, variant, split) are corrected by Holm's method; with fewer than 3 paired seeds there
    are none.

    Args:
        rows: from `read_results`.
        reference: arm that the differences are against.
        metric: "accuracy" or "loss".
    """
    places = list(dict.fromkeys((row["config"], row["variant"], row["split"]) for row in rows))
    summary: list[dict[str, Any]] = []
    for place in places:
        here = [row for row in rows if (row["config"], row["variant"], row["split"]) == place]
        by_arm: dict[str, dict[int, float]] = {}
        for row in here:
            by_arm.setdefault(row["arm"], {})[row["seed"]] = row[metric]
        titles, kinds = ({row["arm"]: row[key] for row in here} for key in ("title", "kind"))
        tested = {arm: values for arm, values in by_arm.items() if kinds[arm] == "arm" or arm == reference}
        compared = compare(tested, reference) | compare({a: v for a, v in by_arm.items() if a not in tested}, None)
        for arm in by_arm:
            interval, difference = compared[arm].interval, compared[arm].difference
            if interval is None:
                continue
            entry = dict(zip(("config", "variant", "split"), place, strict=True))
            entry |= {"arm": arm, "title": titles[arm], "kind": kinds[arm], "n": len(compared[arm].values)}
            entry |= interval._asdict()
            if difference is not None and difference.n >= 2:
                keys = ("difference", "d_low", "d_high", "p", "p_holm")
                entry |= dict(zip(keys, difference[:5], strict=True))
            summary.append(entry)
    return summary


def write_summary(
    rows: Sequence[dict[str, Any]], folder: Path, name: str, command: str, reference: str = "alone"
) -> Path:
    """Write `<name>.csv` (a row a seed) and `<name>.md` (tables, and the command that made them); return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({key: _rounded(row[key]) for key in COLUMNS} for row in rows)
    return write_text(folder / f"{name}.md", markdown(summarise(rows, reference), command, reference))


def markdown(summary: Sequence[dict[str, Any]], command: str, reference: str) -> str:
    """Return the summary as Markdown tables, accuracy in percent."""
    lines = [
        f"Made by `{command}`.",
        "",
        "Accuracy in percent: mean over seeds with its 95 % interval; difference to the arm",
    ]
    lines += [
        f"'{reference}', paired by seed, with its 95 % interval and p-value (t-test, Holm-corrected within a table)."
    ]
    place = None
    for row in summary:
        here = (row["config"], row["variant"], row["split"])
        if here != place:
            place = here
            lines += ["", f"### {here[0]}, {here[1]}, {here[2]}", ""]
            lines += [f"| arm | seeds | accuracy | difference to {reference} | p |", "|---|---|---|---|---|"]
        lines.append("| " + " | ".join(_cells(row)) + " |")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    title = f"teacher {row['arm']}" if row["kind"] == "teacher" else row["title"]
    accuracy = f"{100 * row['mean']:.2f}"
    if row["low"] is not None:
        accuracy += f" [{100 * row['low']:.2f}, {100 * row['high']:.2f}]"
    if row.get("difference") is None:
        return [title, str(row["n"]), accuracy, "", ""]
    difference = f"{100 * row['difference']:+.2f}"
    if row["d_low"] is not None:
        difference += f" [{100 * row['d_low']:+.2f}, {100 * row['d_high']:+.2f}]"
    p = "" if row.get("p_holm") is None else f"{row['p_holm']:.3f}"
    return [title, str(row["n"]), accuracy, difference, p]


def _rounded(value: Any) -> Any:
    return f"{value:.6f}" if isinstance(value, float) else value
