"""The report of an ablation's folder."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from ..tracking import environment
from .rows import read_plan, read_rows
from .spec import check_metric, no_arm


def ablation_report(
    folder: Path, output: Path | None = None, baseline: str | None = None, metric: str | None = None
) -> dict[str, Path]:
    """Print the table of an ablation and write CSV, Markdown, page and figures.

    Args:
        folder: of the ablation.
        output: folder of the files, default the ablation's.
        baseline: arm to compare with instead of the ablation's own.
        metric: what is compared instead of the ablation's own metric.

    Returns:
        The files by kind.

    Raises:
        DataError: the folder is no ablation's.
        ConfigError: there is no such arm or metric.
    """
    from ..report.ablation import print_ablation, write_ablation_report

    rows, plan = read_rows(folder), read_plan(folder)
    about = {key: plan[key] for key in ("name", "title", "baseline", "settings", "seeds", "metric", "command", "arms")}
    about["environment"] = environment()
    if baseline is not None:
        if baseline not in plan["arms"]:
            raise ConfigError(no_arm(baseline, plan["arms"]))
        about["baseline"] = baseline
    if metric is not None and metric != plan["metric"]:
        about |= {"metric": check_metric(metric), "command": f"{plan['command']} --metric {metric}"}
    nameless = {"": plan["name"]}  # an ablation without settings has one, which has no name
    about["settings"] = [nameless.get(setting, setting) for setting in about["settings"]]
    rows = [row | {"setting": nameless.get(row["setting"], row["setting"])} for row in rows]
    print_ablation(rows, about)
    return write_ablation_report(rows, about, folder if output is None else output)
