"""The report of an ablation's folder."""

from __future__ import annotations

from pathlib import Path

from ..tracking import environment
from .rows import read_plan, read_rows


def ablation_report(folder: Path, output: Path | None = None) -> dict[str, Path]:
    """Print the table of an ablation and write CSV, Markdown, page and figures.

    Args:
        folder: of the ablation.
        output: folder of the files, default the ablation's.

    Returns:
        The files by kind.

    Raises:
        DataError: the folder is no ablation's.
    """
    from ..report.ablation import print_ablation, write_ablation_report

    rows, plan = read_rows(folder), read_plan(folder)
    about = {key: plan[key] for key in ("name", "title", "baseline", "settings", "seeds", "metric", "command", "arms")}
    about["environment"] = environment()
    nameless = {"": plan["name"]}  # an ablation without settings has one, which has no name
    about["settings"] = [nameless.get(setting, setting) for setting in about["settings"]]
    rows = [row | {"setting": nameless.get(row["setting"], row["setting"])} for row in rows]
    print_ablation(rows, about)
    return write_ablation_report(rows, about, folder if output is None else output)
