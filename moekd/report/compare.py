"""Several runs on one page: means over seeds with intervals, and paired differences.

Runs of one title and data set that differ in their seed form a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..atomic import write_text
from ..errors import DataError
from ..evaluation.comparison import Difference, paired
from ..evaluation.statistics import mean_interval
from .figures import PALETTE, Drawing, finish, shorten, slug, styled
from .html import Cell, PageTable, render
from .intervals import Entry, interval_figure
from .measures import EMBEDDING, HEADLINES, capital, measure_label
from .run import Run, number, read_run
from .summary import duration
from .table import Role, Row, count, decimal, known_numbers, p_value, percent, points, results_table, span

#: Measures of embeddings that are tested besides the headline.
COMPARED = ("retrieval_r1", "zero_shot_accuracy", "linear_probe_accuracy", "worst_teacher_r2")


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

    @property
    def measure(self) -> str:
        """What the arm is compared by."""
        return next((row.measure for row in self.rows.values()), "accuracy")


@dataclass(frozen=True)
class Comparison:
    """The paired difference of a measure between two arms over their shared seeds; p is corrected in the split."""

    left: Arm
    right: Arm
    measure: str
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
    measure, notes = _common_measure(runs)
    for run in runs:
        twice = sum(title == run.title for title, _ in titles) > 1
        group = f"{run.title} ({run.dataset})" if twice else run.title
        seed = str(run.results.get("seed", run.config.get("seed", "unknown")))
        rows = [replace(row, measure=measure) for row in results_table(run.results, run.teachers)]
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
    asked = [(*pair, measure) for measure in measures_of(arms) for pair in pairs]
    values = [[{seed: row.number(key) for seed, row in arm.rows.items()} for arm in pair] for *pair, key in asked]
    results = paired([(left, right) for left, right in values])
    return [Comparison(*place, result) for place, result in zip(asked, results, strict=True) if result is not None]


def measures_of(arms: Sequence[Arm]) -> list[str]:
    """Return what arms are compared by: the headline, and the main measures of embeddings that students have."""
    headline = next((arm.measure for arm in arms), "accuracy")
    students = [row for arm in arms if arm.role == "student" for row in arm.rows.values()]
    return list(dict.fromkeys([headline, *known_numbers(students, COMPARED)]))


def _common_measure(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """Return what all runs are compared by, and a note where they are not about the same number."""
    rows = [row for run in runs for row in results_table(run.results, run.teachers)]
    own = list(dict.fromkeys(row.measure for row in rows))
    if len(own) < 2:
        return (own or ["accuracy"])[0], []
    students = [row for row in rows if row.role == "student"]
    shared = [name for name in (*own, *HEADLINES) if all(not math.isnan(row.number(name)) for row in students)]
    chosen = (shared or own)[0]
    return chosen, [f"These runs are about {', '.join(map(measure_label, own))}; compared is {measure_label(chosen)}."]


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
    label = measure_label(next((arm.measure for arm in shown), "accuracy"))
    figure = interval_figure(entries, label, lambda value: f"{100 * value:g}%")
    words = "; ".join(f"{arm.name} {percent(mean_interval(arm.values(_headline)).mean)}" for arm in reversed(shown))
    caption = f"{split}: seeds (dots), mean and 95% interval; diamonds are students, squares baselines"
    caption += " in the colour of their group" if len(groups) > 1 else ""
    return finish(figure, slug("intervals", split), "intervals", f"Means over seeds on {split}: {words}.", caption)


def _means(split: str, arms: Sequence[Arm]) -> PageTable:
    measure = next((arm.measure for arm in arms), "accuracy")
    everyone = [row for arm in arms for row in arm.rows.values()]
    others = known_numbers(everyone, ("accuracy", "balanced_accuracy", "weighted_f1", *EMBEDDING))
    others = [name for name in others if name != measure]
    losses = known_numbers(everyone, ("loss",))
    header = [
        "Group",
        "Model",
        "Role",
        "Seeds",
        f"{capital(measure_label(measure))}, mean",
        "95% interval",
        "SD, points",
    ]
    header += [*(capital(measure_label(name)) for name in [*others, *losses]), "Parameters"]
    rows = []
    for arm in arms:
        values = arm.values(_headline)
        if not values:
            continue
        mean, low, high, sd = mean_interval(values)
        means = {name: _mean(arm.values(_reader(name))) for name in [*others, *losses]}
        parameters = next((row.parameters for row in arm.rows.values()), None)
        spread = math.nan if sd is None else sd
        cells = [Cell(arm.group), Cell(arm.model), Cell(arm.role), Cell(str(len(values)), len(values))]
        cells += [
            Cell(percent(mean), mean),
            Cell(span(low, high, percent), number(low)),
            Cell(decimal(100 * spread, 2), spread),
        ]
        cells += [Cell((decimal if name == "loss" else percent)(value), value) for name, value in means.items()]
        cells.append(Cell(count(parameters), number(parameters)))
        rows.append(cells)
    strong = frozenset(i for i, row in enumerate(rows) if row[2].text == "student")
    return PageTable(f"{split}: means over seeds", header, rows, strong)


def _differences(split: str, compared: Sequence[Comparison]) -> PageTable | None:
    if not compared:
        return None
    several = len({found.measure for found in compared}) > 1
    header = ["Student of", "Against", *(["Measure"] if several else []), "Pairs", "Difference, points"]
    header += ["95% interval", "p", "p, Holm"]
    rows = []
    for found in compared:
        mean, low, high, p, p_holm, n = found.result
        cells = [Cell(found.left.group), Cell(found.right.name)]
        cells += [Cell(measure_label(found.measure))] if several else []
        cells += [Cell(str(n), n), Cell(points(mean), mean)]
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


def _reader(name: str) -> Callable[[Row], float]:
    return lambda row: row.number(name)


def _headline(row: Row) -> float:
    return row.headline


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
