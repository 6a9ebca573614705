"""Published methods against what they must beat: every config of `configs/methods` over seeds, one table.

A config names its publication, the baseline that the publication claims to beat (`paper.must_beat`) and a student
without teachers (`student_alone`), all with the same data, teachers and budget. The table says which gains came out
again here, and which did not.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ..atomic import write_text
from ..config import load_config, shipped_configs
from ..errors import ConfigError, DataError, did_you_mean
from ..evaluation.comparison import Difference, finite, paired
from ..evaluation.statistics import mean_interval
from .methods_figure import write_figure
from .suite import Suite, finished_cells

FOLDER, ALONE, MAIN = "methods/", "student_alone", "student"
COLUMNS = ("method", "arm", "title", "role", "metric", "split", "seed", "value", "seconds", "run_seconds")

HEADINGS = (
    "method",
    "metric",
    "seeds",
    "alone",
    "to beat",
    "method",
    "difference",
    "p",
    "reproduced",
    "against alone",
    "step",
    "run",
)

#: Metrics that a method's own table shows beside the one that is compared.
ALSO = {"rank_agreement": "order as the teacher's (tau)"}


@dataclass
class Measured:
    """What the runs of one method found.

    Attributes:
        slug: name of its config in `configs/methods`.
        title: of the publication.
        source: its arXiv id and year.
        metric: what is compared, and on which split.
        must_beat: the arm that the publication claims to beat.
        titles: titles of the arms.
        values: the metric by arm and seed.
        seconds: time of a step by arm and seed.
        run_seconds: time of the whole run by seed: teachers, all arms, tests and report.
        also: further metrics of `ALSO`, by arm and seed, where runs have them.
    """

    slug: str
    title: str
    source: str
    metric: str
    must_beat: str
    titles: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    run_seconds: dict[int, float] = field(default_factory=dict)
    also: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)


def methods_suite(names: Sequence[str] = ()) -> Suite:
    """Return the suite of all published methods, or of those that are named.

    Raises:
        ConfigError: there is no such method.
    """
    known = [name.removeprefix(FOLDER) for name in shipped_configs() if name.startswith(FOLDER)]
    for name in names:
        if name not in known:
            raise ConfigError(f"no method '{name}'{did_you_mean(name, known) or '; methods: ' + ', '.join(known)}")
    return Suite("methods", tuple(f"{FOLDER}{name}" for name in names or known), {"as shipped": ()})


def read_methods(suite: Suite, runs: Path) -> list[Measured]:
    """Return what the finished runs found, method by method.

    Raises:
        DataError: no run is finished, or one lacks the metric that its config is about.
    """
    found: dict[str, Measured] = {}
    for cell, results in finished_cells(suite, runs):
        slug = cell.config.removeprefix(FOLDER)
        paper = load_config(cell.config)[0]["paper"]
        split = next(iter(results["test"]))
        metric = results.get("headline") or "accuracy"
        method = found.setdefault(
            slug,
            Measured(
                slug,
                paper["title"],
                f"arXiv {paper.get('arxiv', '-')}, {paper.get('year', '-')}",
                f"{metric.replace('_', ' ')} ({split})",
                paper.get("must_beat", ALONE),
            ),
        )
        method.run_seconds[cell.seed] = results["seconds"]
        for arm, metrics in results["test"][split].items():
            if arm in results["teachers"]:
                continue
            if metric not in metrics:
                raise DataError(f"{runs / cell.name}: arm '{arm}' has no '{metric}', which evaluation.headline names")
            method.titles[arm] = results["titles"].get(arm, arm)
            method.values.setdefault(arm, {})[cell.seed] = metrics[metric]
            for also in ALSO.keys() & metrics.keys():
                method.also.setdefault(also, {}).setdefault(arm, {})[cell.seed] = metrics[also]
            method.seconds.setdefault(arm, {})[cell.seed] = _seconds(results["stages"], arm)
    return list(found.values())


def _seconds(stages: Sequence[Mapping[str, Any]], arm: str) -> float:
    """Return the training time of an arm's last stage for a step, the one part that no arm shares with another."""
    phase = "main" if arm == MAIN else arm
    last = next((stage for stage in reversed(stages) if stage["phase"] == phase), None)
    return last["train_seconds"] / last["steps"] if last and last["steps"] else math.nan


def differences(methods: Sequence[Measured]) -> dict[str, tuple[Difference | None, Difference | None]]:
    """Return each method's paired difference to what it must beat, and to the student alone.

    Holm's correction is over all methods, for each of the two on its own.
    """
    columns = []
    for other in ("must_beat", ALONE):
        arms = [method.must_beat if other == "must_beat" else ALONE for method in methods]
        columns.append(
            paired([(m.values.get(MAIN, {}), m.values.get(arm, {})) for m, arm in zip(methods, arms, strict=True)])
        )
    return {method.slug: (columns[0][i], columns[1][i]) for i, method in enumerate(methods)}


def verdict(difference: Difference | None) -> str:
    """Say in one word whether a gain came out again."""
    if difference is None or difference.p_holm is None:
        return "too few seeds"
    if not difference.beyond_chance:
        return "not beyond chance"
    return "yes" if difference.mean > 0 else "no: worse"


def write_methods(methods: Sequence[Measured], folder: Path, command: str) -> Path:
    """Write `methods.csv` (a row an arm and seed), `methods.svg` (gains), and `methods.md` (the tables)."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "methods.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(row for method in methods for row in _rows(method))
    write_figure([(method.slug, *differences(methods)[method.slug]) for method in methods], folder / "methods.svg")
    return write_text(folder / "methods.md", markdown(methods, command))


def _rows(method: Measured) -> list[dict[str, Any]]:
    roles = {MAIN: "method", method.must_beat: "must beat", ALONE: "alone"}
    metric, split = method.metric.rstrip(")").split(" (")
    return [
        {
            "method": method.slug,
            "arm": arm,
            "title": method.titles[arm],
            "role": roles.get(arm, "other"),
            "metric": metric,
            "split": split,
            "seed": seed,
            "value": f"{value:.6f}",
            "seconds": f"{method.seconds[arm][seed]:.5f}",
            "run_seconds": f"{method.run_seconds[seed]:.1f}",
        }
        for arm, values in method.values.items()
        for seed, value in values.items()
    ]


def markdown(methods: Sequence[Measured], command: str) -> str:
    """Return the results as Markdown, metrics in percent."""
    found = differences(methods)
    lines = [
        f"Made by `{command}`.",
        "",
        "In percent: mean over seeds; differences paired by seed with their 95 % interval (Student's t), p-values of",
        "the paired t-test after Holm's correction over the methods. Step: a training step of the method's last stage",
        "over one of the student alone. Run: seconds of a whole run, with teachers and all arms (median over seeds).",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---" * len(HEADINGS) + "|",
    ]
    for method in methods:
        beats, alone = found[method.slug]
        row = [f"`{method.slug}`", method.metric, str(len(method.values.get(MAIN, {})))]
        row += [_mean(method.values.get(arm, {})) for arm in (ALONE, method.must_beat, MAIN)]
        p = "-" if beats is None or beats.p_holm is None else f"{beats.p_holm:.3f}"
        row += [_difference(beats), p, verdict(beats), _difference(alone), _times(method)]
        row.append(f"{median(method.run_seconds.values()):.0f} s" if method.run_seconds else "-")
        lines.append("| " + " | ".join(row) + " |")
    for method in methods:
        lines += ["", f"### {method.slug}", "", f"{method.title} ({method.source})", ""]
        further = [ALSO[also] for also in method.also]
        lines += [f"| {' | '.join(['arm', 'seeds', 'value', *further, 'seconds a step'])} |"]
        lines += ["|---" * (4 + len(further)) + "|"]
        for arm, values in sorted(method.values.items(), key=lambda item: -sum(item[1].values()) / len(item[1])):
            mark = " (to beat)" if arm == method.must_beat else ""
            seconds = finite(method.seconds[arm])
            each = f"{sum(seconds.values()) / len(seconds):.4f}" if seconds else "-"
            row = [method.titles[arm] + mark, str(len(values)), _mean(values, interval=True)]
            row += [_mean(arms.get(arm, {}), interval=True) for arms in method.also.values()]
            lines.append(f"| {' | '.join([*row, each])} |")
    return "\n".join(lines) + "\n"


def _mean(values: Mapping[int, float], interval: bool = False) -> str:
    kept = list(finite(values).values())
    if not kept:
        return "-"
    found = mean_interval(kept)
    text = f"{100 * found.mean:.2f}"
    if not interval or found.low is None or found.high is None:
        return text
    return f"{text} [{100 * found.low:.2f}, {100 * found.high:.2f}]"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    text = f"{100 * difference.mean:+.2f}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


def _times(method: Measured) -> str:
    own, alone = (list(finite(method.seconds.get(arm, {})).values()) for arm in (MAIN, ALONE))
    return f"{sum(own) / len(own) / (sum(alone) / len(alone)):.2f}" if own and alone else "-"
