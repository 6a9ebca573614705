"""Several runs on one page: means over seeds with intervals, and paired differences.

Runs of one title and data set that differ in their seed form a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..atomic import write_text
from ..errors import DataError
from ..evaluation.comparison import Difference, paired
from ..evaluation.statistics import mean_interval
from .figures import PALETTE, Drawing, finish, shorten, slug, styled
from .html import Cell, PageTable, render
from .intervals import Entry, interval_figure
from .run import Run, number, read_run
from .summary import duration
from .table import Role, Row, count, decimal, p_value, percent, points, results_table, span


@dataclass(frozen=True)
class Arm:
    """One model of one group on one split: its rows by seed."""

    group: str
    model: str
    role: Role
    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The group's title for its student, else title and model."""
        return self.group if self.role == "student" else f"{self.group}: {self.model}"

    def values(self, read: Callable[[Row], float]) -> list[float]:
        """Return one number of each seed; seeds where it is unknown are left out."""
        return [value for value in map(read, self.rows.values()) if not math.isnan(value)]


@dataclass(frozen=True)
class Comparison:
    """The paired difference between two arms over the seeds that both have; p is corrected within the split."""

    left: Arm
    right: Arm
    result: Difference


def compare_report(runs: Sequence[Path], output: Path) -> Path:
    """Write one self-contained page that compares runs, and return its path.

    Raises:
        DataError: no run, or a path that is not a run folder.
    """
    if not runs:
        raise DataError("nothing to compare: give at least one run folder")
    data = [read_run(Path(path)) for path in runs]
    splits, notes = arms_by_split(data)
    notes = [f"{run.path}: {note}" for run in data for note in run.notes] + notes
    compared = {split: comparisons(arms) for split, arms in splits.items()}
    with styled():
        drawings = {split: interval_plot(split, arms) for split, arms in splits.items()}
    page = render(
        "compare.html.jinja",
        title=f"Comparison of {len(data)} run{'s' if len(data) != 1 else ''}",
        summary=_sentence(splits, compared),
        notes=notes,
        splits=[
            (split, _means(split, arms), _differences(split, compared[split]), [drawings[split]])
            for split, arms in splits.items()
        ],
        runs=_runs(data),
    )
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    return write_text(output, page)


def arms_by_split(runs: Sequence[Run]) -> tuple[dict[str, list[Arm]], list[str]]:
    """Sort the results of all runs into arms a split; return them with notes on runs that take no part."""
    titles = {(run.title, run.dataset) for run in runs}
    arms: dict[str, dict[tuple[str, str], Arm]] = {}
    notes = []
    for run in runs:
        twice = sum(title == run.title for title, _ in titles) > 1
        group = f"{run.title} ({run.dataset})" if twice else run.title
        seed = str(run.results.get("seed", run.config.get("seed", "unknown")))
        rows = results_table(run.results, run.teachers)
        if not rows:
            notes.append(f"{run.name} has no test results and takes no part.")
        for row in rows:
            arm = arms.setdefault(row.split, {}).setdefault((group, row.model), Arm(group, row.model, row.role))
            if seed in arm.rows and row.role == "student":
                notes.append(f"'{group}' has seed {seed} more than once on {row.split}; the run given last counts.")
            arm.rows[seed] = row
    return {split: list(members.values()) for split, members in arms.items()}, list(dict.fromkeys(notes))


def comparisons(arms: Sequence[Arm]) -> list[Comparison]:
    """Compare each student with the baselines of its group, and the first group's student with the other students.

    The p-values are corrected by Holm's method over all comparisons of the split.
    """
    students = [arm for arm in arms if arm.role == "student"]
    pairs = [(s, a) for s in students for a in arms if a.group == s.group and a.role == "baseline"]
    pairs += [(students[0], other) for other in students[1:]]
    headlines = [({seed: row.headline for seed, row in arm.rows.items()} for arm in pair) for pair in pairs]
    results = paired([(left, right) for left, right in headlines])
    return [Comparison(*pair, result) for pair, result in zip(pairs, results, strict=True) if result is not None]


def interval_plot(split: str, arms: Sequence[Arm]) -> Drawing:
    """Draw the seeds of each arm as dots and their mean with its 95% interval."""
    shown = [arm for arm in arms if arm.role != "teacher" and arm.values(_headline)]
    shown.sort(key=lambda arm: mean_interval(arm.values(_headline)).mean)
    groups = list(dict.fromkeys(arm.group for arm in arms))
    entries = []
    for arm in shown:
        values = arm.values(_headline)
        mean, low, high, _ = mean_interval(values)
        color = PALETTE[groups.index(arm.group) % len(PALETTE)]
        label = shorten(arm.name if arm.role == "student" else arm.model, 28)
        entries.append(Entry(label, values, mean, low, high, color, "D" if arm.role == "student" else "s"))
    dense = any(row.dense for arm in shown for row in arm.rows.values())
    figure = interval_figure(entries, "mIoU" if dense else "accuracy", lambda value: f"{100 * value:g}%")
    words = "; ".join(f"{arm.name} {percent(mean_interval(arm.values(_headline)).mean)}" for arm in reversed(shown))
    caption = f"{split}: seeds (dots), mean and 95% interval; diamonds are students, squares baselines"
    caption += " in the colour of their group" if len(groups) > 1 else ""
    return finish(figure, slug("intervals", split), "intervals", f"Means over seeds on {split}: {words}.", caption)


def _means(split: str, arms: Sequence[Arm]) -> PageTable:
    dense = any(row.dense for arm in arms for row in arm.rows.values())
    measure = "mIoU" if dense else "Accuracy"
    header = ["Group", "Model", "Role", "Seeds", f"{measure}, mean", "95% interval", "SD, points"]
    header += ["Balanced accuracy", "Weighted F1", "Loss", "Parameters"]
    rows = []
    for arm in arms:
        values = arm.values(_headline)
        if not values:
            continue
        mean, low, high, sd = mean_interval(values)
        others = [_mean(arm.values(read)) for read in (lambda r: r.balanced_accuracy, lambda r: r.weighted_f1)]
        loss = _mean(arm.values(lambda row: row.loss))
        parameters = next((row.parameters for row in arm.rows.values()), None)
        spread = math.nan if sd is None else sd
        cells = [Cell(arm.group), Cell(arm.model), Cell(arm.role), Cell(str(len(values)), len(values))]
        cells += [
            Cell(percent(mean), mean),
            Cell(span(low, high, percent), number(low)),
            Cell(decimal(100 * spread, 2), spread),
        ]
        cells += [Cell(percent(value), value) for value in others]
        cells += [Cell(decimal(loss), loss), Cell(count(parameters), number(parameters))]
        rows.append(cells)
    strong = frozenset(i for i, row in enumerate(rows) if row[2].text == "student")
    return PageTable(f"{split}: means over seeds", header, rows, strong)


def _differences(split: str, compared: Sequence[Comparison]) -> PageTable | None:
    if not compared:
        return None
    header = ["Student of", "Against", "Pairs", "Difference, points", "95% interval", "p", "p, Holm"]
    rows = []
    for found in compared:
        mean, low, high, p, p_holm, n = found.result
        cells = [Cell(found.left.group), Cell(found.right.name), Cell(str(n), n), Cell(points(mean), mean)]
        cells += [
            Cell(span(low, high, points), number(low)),
            Cell(p_value(p), number(p)),
            Cell(p_value(p_holm), number(p_holm)),
        ]
        rows.append(cells)
    return PageTable(f"{split}: paired differences over seeds", header, rows)


def _runs(runs: Sequence[Run]) -> PageTable:
    header = ["Run", "Title", "Data set", "Seed", "Time"]
    rows = []
    for run in runs:
        seed, seconds = run.results.get("seed", run.config.get("seed")), number(run.results.get("seconds"))
        cells = [Cell(run.name), Cell(run.title), Cell(run.dataset), Cell(str(seed), number(seed))]
        rows.append([*cells, Cell(duration(seconds), seconds)])
    return PageTable("the runs", header, rows)


def _sentence(splits: dict[str, list[Arm]], compared: dict[str, list[Comparison]]) -> str:
    """State the students' means on each split, and how many of the differences are beyond chance."""
    if not splits:
        return "None of these runs has test results."
    sentences = []
    for split, arms in splits.items():
        students = [(arm, arm.values(_headline)) for arm in arms if arm.role == "student"]
        means = [f"{arm.group} {percent(_mean(values))} ({_seeds(len(values))})" for arm, values in students if values]
        tested = [found for found in compared[split] if found.result.p is not None]
        beyond = sum(found.result.beyond_chance for found in tested)
        words = (
            f"On {split} the mean of {'the student is' if len(means) == 1 else 'the students is'} {', '.join(means)}"
        )
        if tested:
            words += f"; {beyond} of {len(tested)} paired differences are beyond chance (p < 0.05 after Holm)"
        elif compared[split]:
            words += "; fewer than 3 shared seeds, so no difference can be tested"
        else:
            words += "; there is no baseline and no second group to compare with"
        sentences.append(f"{words}.")
    return " ".join(sentences)


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _headline(row: Row) -> float:
    return row.headline


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
