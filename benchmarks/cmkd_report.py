"""Tables and the page of the cross-modal benchmark: ranks, methods by cell, what forms are worth, what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..evaluation.comparison import Difference, compare, paired
from ..evaluation.statistics import mean_interval
from ..report.ablation_text import escape, table_lines
from ..report.critical_difference import Ranking, critical_difference_diagram, rank_methods
from ..report.figures import Drawing, save, styled
from ..report.html import Cell, PageTable, render
from .cmkd import Request
from .cmkd_results import Row, write_csv
from .cmkd_suite import ALONE

MAIN, TESTED = "MST-Distill", "test"
#: From this many complete cells on, cells are the blocks of the ranks; below, every seed of a cell is one.
CELLS = 5
Values = dict[str, dict[int, float]]


def values_by_cell(rows: Sequence[Row], request: Request, split: str = TESTED) -> dict[str, Values]:
    """Return `{cell: {title: {seed: metric}}}` of the finished runs."""
    found: dict[str, Values] = {}
    for row in rows:
        if row["status"] != "done" or row.get("split") != split:
            continue
        metric = request.suite.data[row["cell"]].metric or request.suite.metric
        if row.get(metric) is not None:
            found.setdefault(row["cell"], {}).setdefault(row["title"], {})[int(row["seed"])] = float(row[metric])
    return found


def ranking_of(cells: Mapping[str, Values]) -> tuple[Ranking | None, str]:
    """Rank the methods that are complete everywhere; return the ranking and what a block is."""
    titles = list(dict.fromkeys(t for values in cells.values() for t in values))
    shared = {
        cell: sorted(set.intersection(*(set(seeds) for seeds in values.values()))) for cell, values in cells.items()
    }
    complete = [t for t in titles if all(t in values for values in cells.values())]
    blocks = [(cell, seed) for cell, seeds in shared.items() for seed in seeds]
    if len(complete) < 2 or not blocks:
        return None, ""
    if len(cells) >= CELLS:
        means = {t: [_mean([cells[c][t][s] for s in shared[c]]) for c in cells if shared[c]] for t in complete}
        return rank_methods(means), "data sets with a direction"
    scores = {t: [cells[cell][t][seed] for cell, seed in blocks] for t in complete}
    return rank_methods(scores), "data sets and seeds (seeds of one data set are not independent data sets)"


def place_of(cells: Mapping[str, Values], ranking: Ranking | None, title: str = MAIN) -> list[str]:
    """Say where a method stands, with paired intervals against the best of the others."""
    if ranking is None or title not in ranking.methods:
        return []
    place = ranking.methods.index(title)
    words = f"{title} has mean rank {ranking.ranks[place]:.1f}, place {place + 1} of {len(ranking.methods)} methods"
    sentences = [f"{words} over {ranking.blocks} blocks."]
    rivals = [name for name in ranking.methods if not name.startswith(title) and not name.startswith(ALONE)]
    for rival in [*rivals[:1], ALONE]:
        found = difference_of(cells, title, rival)
        what = "the best baseline by rank" if rival != ALONE else "the student alone"
        if found is not None:
            sentences.append(
                f"Against {what}{f' ({rival})' if rival != ALONE else ''}: {_points(found)} points, paired by cell and "
                f"seed ({found.n} pairs)."
            )
    return sentences


def difference_of(cells: Mapping[str, Values], left: str, right: str) -> Difference | None:
    """Return left - right over all cells and seeds that both have."""
    joined = [
        {(cell, seed): value for cell, values in cells.items() for seed, value in values.get(title, {}).items()}
        for title in (left, right)
    ]
    (found,) = paired([(joined[0], joined[1])])
    return found


def ranks_table(ranking: Ranking, cells: Mapping[str, Values], titles: Mapping[str, str]) -> PageTable:
    """Return methods by mean rank with their mean in every cell, in percent."""
    header = ["Method", "Mean rank", *(titles[cell] for cell in cells)]
    rows = []
    for name, rank in zip(ranking.methods, ranking.ranks, strict=True):
        numbers = [_mean(list(cells[cell][name].values())) for cell in cells]
        rows.append([Cell(name), Cell(f"{rank:.2f}", rank), *(Cell(f"{100 * x:.1f}", x) for x in numbers)])
    strong = frozenset(i for i, name in enumerate(ranking.methods) if name in (MAIN, ALONE))
    return PageTable("mean ranks (1 is best) and means over seeds, in percent", header, rows, strong)


def cell_table(rows: Sequence[Row], values: Values, title: str) -> PageTable:
    """Return the methods of one cell, best first: mean, difference to the student alone, choice, cost."""
    compared = compare(values, ALONE)
    by_title: dict[str, list[Row]] = {}
    for row in rows:
        by_title.setdefault(row["title"], []).append(row)
    header = ["Method", "Seeds", "Mean", "Difference to the student alone", "p, Holm", "Validation", "Chosen"]
    header += ["Seconds", "Seconds a step", "Teacher forwards a step", "Trained parameters", "Peak memory, MB"]
    lines = []
    order = sorted(values, key=lambda name: -_mean(list(values[name].values())))
    for name in order:
        found, mine = compared[name], by_title[name]
        interval = mean_interval(list(found.values.values()))
        difference = found.difference
        chosen = f"{mine[0]['weight']:g}" + (f", {mine[0]['teacher']}" if mine[0]["teacher"] else "")
        holm = difference.p_holm if difference else None
        lines.append(
            [
                Cell(name),
                Cell(str(len(found.values)), len(found.values)),
                Cell(f"{100 * interval.mean:.2f}", interval.mean, _span(interval.low, interval.high)),
                _difference_cell(difference) if name != ALONE else Cell("baseline", 0.0),
                Cell("-" if holm is None else f"{holm:.3f}", holm if holm is not None else math.nan),
                _number(mine, "validation", lambda x: f"{100 * x:.2f}"),
                Cell(chosen),
                _number(mine, "seconds", lambda x: f"{x:.1f}"),
                _number(mine, "seconds_per_step", lambda x: f"{x:.4f}"),
                _number(mine, "teacher_forwards_per_step", lambda x: f"{x:.2f}"),
                _number(mine, "trained_parameters", lambda x: f"{x:,.0f}"),
                _number(mine, "peak_memory_mb", lambda x: f"{x:.0f}"),
            ]
        )
    strong = frozenset(i for i, name in enumerate(order) if name in (MAIN, ALONE))
    caption = f"{title}: means over seeds in percent with 95 % intervals; differences in points, paired by seed"
    return PageTable(caption, header, lines, strong)


def forms_table(cells: Mapping[str, Values], request: Request) -> PageTable:
    """Return for every method what its forms are worth, paired by cell and seed."""
    header = ["Method", "Best single teacher - student alone", "Averaged - best single", "Routed - averaged"]
    rows = []
    for method in request.suite.methods.values():
        names = [f"{method.title}, {words}" for words in ("best single teacher", "averaged", "routed")]
        steps = [(names[0], ALONE), (names[1], names[0]), (names[2], names[1])]
        differences = [difference_of(cells, left, right) for left, right in steps]
        if any(found is not None for found in differences):
            rows.append([Cell(method.title), *(_difference_cell(found) for found in differences)])
    return PageTable("what the forms are worth: points over all cells and seeds, with 95 % intervals", header, rows)


def against_table(published: Sequence[Row], cells: Mapping[str, Values], request: Request) -> PageTable:
    """Return the numbers that a user brought beside ours."""
    header = ["Cell", "Method", "Published", "Ours", "Ours - published", "Source"]
    rows = []
    for line in published:
        cell = request.suite.data[line["cell"]]
        fitting = [
            m.title
            for m in request.methods_in(cell)
            if m.name == line["method"] and (not line["form"] or m.form == line["form"])
        ]
        for title in fitting:
            ours = list(cells.get(line["cell"], {}).get(title, {}).values())
            mean = _mean(ours) if ours else math.nan
            sd = "" if line["sd"] is None else f"sd {100 * line['sd']:.2f}"
            difference = mean - line["value"]
            rows.append(
                [
                    Cell(cell.title),
                    Cell(title),
                    Cell(f"{100 * line['value']:.2f}", line["value"], sd),
                    Cell("-" if not ours else f"{100 * mean:.2f}", mean, f"{len(ours)} seeds" if ours else ""),
                    Cell("-" if not ours else f"{100 * difference:+.2f}", difference),
                    Cell(line["source"]),
                ]
            )
    return PageTable("published numbers beside ours (other seeds, splits and budgets: no test is made)", header, rows)


def write_cmkd(
    rows: Sequence[Row],
    request: Request,
    folder: Path,
    command: str,
    published: Sequence[Row] = (),
    name: str = "cmkd",
) -> dict[str, Path]:
    """Write `<name>.csv`, `<name>.md`, `<name>.html` and `figures/`; return the files by kind."""
    cells = values_by_cell(rows, request)
    titles = {cell: request.suite.data[cell].title for cell in cells}
    ranking, blocks = ranking_of(cells)
    drawings: list[Drawing] = []
    if ranking is not None:
        with styled():
            drawings = [critical_difference_diagram(ranking, f"{name}-ranks", blocks)]
        save(drawings, folder / "figures")
    tables = [ranks_table(ranking, cells, titles)] if ranking is not None else []
    forms = forms_table(cells, request)
    tables += [forms] if forms.rows else []
    tables += [against_table(published, cells, request)] if published else []
    parts = {
        titles[cell]: cell_table([r for r in rows if r["cell"] == cell and r["status"] == "done"], values, titles[cell])
        for cell, values in cells.items()
    }
    summary, notes = place_of(cells, ranking), _notes(rows, request)
    page = render(
        "cmkd.html.jinja",
        title=request.suite.title,
        summary=summary,
        command=command,
        notes=notes,
        drawings=drawings,
        tables=tables,
        cells=parts,
    )
    lines = [f"# {request.suite.title}", "", f"Made by `{command}`.", "", *(escape(s) for s in summary), ""]
    lines += [f"- {escape(note)}" for note in notes] + [""]
    for table in tables:
        lines += [f"## {escape(table.caption)}", "", *table_lines(table), ""]
    for title, table in parts.items():
        lines += [f"## {escape(title)}", "", escape(table.caption) + ".", "", *table_lines(table), ""]
    return {
        "csv": write_csv(rows, folder / f"{name}.csv"),
        "md": write_text(folder / f"{name}.md", "\n".join(lines).rstrip() + "\n"),
        "html": write_text(folder / f"{name}.html", page),
    }


def _notes(rows: Sequence[Row], request: Request) -> list[str]:
    """Say what is not in the tables, and how the choices were made."""
    weights = ", ".join(f"{w:g}" for w in request.suite.tuning.weights)
    notes = [
        f"Weights are factors of the published ones, from {weights}; for one teacher also which one. They were chosen "
        f"by validation with seed {request.suite.tuning.seed}, which is not among the reported seeds."
        if request.tune
        else "Nothing was tuned: published weights, and the teacher that reads most modalities."
    ]
    notes.append("Averaged and routed forms take the weight that was chosen for one teacher.")
    notes.append("Seconds are those of the stages that a method does not share.")
    notes.append(_memory_note(rows))
    notes += [f"Left out in {', '.join(cells)}: {what}." for what, cells in request.left_out().items()]
    left: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row["status"] != "done":
            reason = " ".join(str(row["reason"]).split())[-200:]
            left.setdefault((row["status"], reason), set()).add(f"{row['cell']}: {row['title']}")
    for (status, reason), what in left.items():
        names = sorted(what)
        shown = "; ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        notes.append(f"{status}: {shown} ({reason})")
    return notes


def _memory_note(rows: Sequence[Row]) -> str:
    """Say what the column of memory means; runs of an older version, or on other systems, know of the process only."""
    done = [row for row in rows if row["status"] == "done"]
    whole = sum(row.get("peak_memory_of") != "part" for row in done)
    words = (
        "Memory is the largest resident size while those stages ran, with libraries and data, or what they had "
        "allocated on a GPU."
    )
    if not whole:
        return words
    share = "all" if whole == len(done) else f"{whole} of {len(done)}"
    return f"{words} In {share} runs it is the peak of the process so far, earlier runs included."


def _difference_cell(found: Difference | None) -> Cell:
    if found is None:
        return Cell("-", math.nan)
    sure = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
    mark = ("up" if found.mean > 0 else "down") + ("3" if found.beyond_chance else "2" if sure else "1")
    text = f"{100 * found.mean:+.2f}" + ("*" if found.beyond_chance else "")
    return Cell(text, found.mean, _span(found.low, found.high, "+"), mark if found.mean else "")


def _number(rows: Sequence[Row], key: str, form: Any) -> Cell:
    values = [float(row[key]) for row in rows if row.get(key) is not None and math.isfinite(float(row[key]))]
    return Cell(form(_mean(values)), _mean(values)) if values else Cell("-", math.nan)


def _span(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"{100 * low:{sign}.2f}, {100 * high:{sign}.2f}"


def _points(found: Difference) -> str:
    return f"{100 * found.mean:+.2f}" + (f" [{_span(found.low, found.high, '+')}]" if found.low is not None else "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
