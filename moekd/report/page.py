"""One self-contained HTML page about a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..atomic import write_text
from .classes import ClassRow, class_accuracy, class_rows, frequent, teacher_use
from .curves import routing_curves, training_curves
from .embeddings import embedding_tables, shift_table
from .examples import draw_map, read_examples
from .figures import save, styled
from .html import Cell, PageTable, flatten, render
from .measures import capital, measure_label
from .run import Run, mapping, number, read_run
from .summary import duration, key_numbers, primary_split, routing_sentence, summary
from .table import Row, best, count, decimal, known_numbers, percent, points, results_table

SECTIONS = ("embeddings", "training", "baselines", "routing", "classes")


def write_report(run: Path) -> Path:
    """Write `figures/*.png` and `report.html` into a run folder and return the path of the page.

    Works on runs that have not finished: what is missing is named on the page.

    Raises:
        DataError: `run` is not a run folder.
    """
    data = read_run(run)
    rows = results_table(data.results, data.teachers)
    split = primary_split(rows)
    student, baseline = (best(rows, "student", split), best(rows, "baseline", split)) if split else (None, None)
    classes = class_rows(data, student, baseline)
    shown, note = frequent(classes)
    examples = read_examples(data)
    with styled():
        drawings = [
            *draw_map(examples),
            *training_curves(data),
            *routing_curves(data),
            *teacher_use(data, classes),
            *class_accuracy(classes, shown, note, baseline.model if baseline else None),
        ]
    save(drawings, data.path / "figures")
    page = render(
        "report.html.jinja",
        title=data.title,
        facts=_facts(data),
        summary=summary(data, rows),
        tiles=key_numbers(data, rows),
        notes=data.notes,
        results=[_results(rows, name) for name in dict.fromkeys(row.split for row in rows)],
        figures={section: [d for d in drawings if d.section == section] for section in SECTIONS},
        embeddings=embedding_tables(data, rows),
        shift=shift_table(rows),
        examples=examples,
        routing=routing_sentence(data),
        classes=_classes(classes, baseline, split) if classes else None,
        stages=_stages(data),
        environment=list(flatten(data.environment)),
        config=data.config_text,
    )
    target = data.path / "report.html"
    return write_text(target, page)


def _facts(run: Run) -> list[tuple[str, str]]:
    """What was run: label and value of each known fact."""
    facts = [("run", run.name), ("data set", run.dataset)]
    facts += [(key, str(run.results[key])) for key in ("seed",) if key in run.results]
    kind = mapping(run.results.get("student")).get("kind") or mapping(run.config.get("student")).get("kind")
    facts += [("student", str(kind or "")), ("teachers", ", ".join(run.teachers))]
    return [(label, value) for label, value in facts if value]


def _results(rows: Sequence[Row], split: str) -> PageTable:
    here = [row for row in rows if row.split == split]
    student = next((row for row in here if row.role == "student"), None)
    dense = any(row.dense for row in here)
    shares = known_numbers(here, ("miou", "accuracy", "balanced_accuracy", "weighted_f1"))
    if here[0].measure not in shares:
        shares = [*known_numbers(here, (here[0].measure,)), *shares]
    others = known_numbers(here, ("loss", "calibration_error"))
    header = ["Model", "Role", *(capital(measure_label(key)) for key in [*shares, *others])]
    header += ["Parameters", "Student lead, points"]
    table = []
    for row in here:
        gap = student.headline - row.headline if student and row is not student else math.nan
        cells = [Cell(row.model, detail=row.title if row.title != row.model else ""), Cell(row.role)]
        cells += [Cell(percent(row.number(key)), row.number(key)) for key in shares]
        cells += [Cell(decimal(row.number(key)), row.number(key)) for key in others]
        cells += [Cell(count(row.parameters), number(row.parameters)), Cell(points(gap), gap)]
        table.append(cells)
    size = next((f", {count(row.n)} {'pixels' if dense else 'samples'}" for row in here if row.n is not None), "")
    strong = frozenset(index for index, row in enumerate(here) if row is student)
    return PageTable(f"{split}{size}", header, table, strong)


def _classes(classes: Sequence[ClassRow], baseline: Row | None, split: str | None) -> PageTable:
    header = ["Class", "Samples", "Student", *([baseline.model, "Difference, points"] if baseline else [])]
    rows = []
    for row in classes:
        cells = [Cell(row.name), Cell(count(row.n), row.n), Cell(percent(row.student), row.student)]
        if baseline:
            cells += [Cell(percent(row.baseline), row.baseline), Cell(points(row.difference), row.difference)]
        rows.append(cells)
    return PageTable(f"accuracy within each class of {split}", header, rows)


def _stages(run: Run) -> PageTable | None:
    ends = run.of_type("stage_end")
    if not ends:
        return None
    header = ["Phase", "Stage", "Epochs", "Steps", "Time", "Steps per second", "Best epoch", "Peak memory, MB"]
    rows = []
    for end in ends:
        epochs, steps, seconds, chosen, memory = (
            number(end.get(key)) for key in ("epochs", "steps", "seconds", "best_epoch", "peak_memory_mb")
        )
        rate = steps / seconds if seconds > 0 else math.nan
        cells = [Cell(str(end.get("phase", "main"))), Cell(str(end.get("stage", "")))]
        cells += [Cell(count(epochs), epochs), Cell(count(steps), steps), Cell(duration(seconds), seconds)]
        cells += [Cell(decimal(rate, 1), rate), Cell(count(chosen + 1), chosen), Cell(count(memory), memory)]
        rows.append(cells)
    return PageTable("cost of each stage", header, rows)
