"""The result of a run in plain sentences, and its key numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .curves import monitored
from .run import Run, mapping, number
from .table import Row, best, count, percent


def primary_split(rows: Sequence[Row]) -> str | None:
    """Return the split that the summary speaks of: "test", or the first."""
    splits = [row.split for row in rows]
    return "test" if "test" in splits else next(iter(splits), None)


def summary(run: Run, rows: Sequence[Row]) -> str:
    """Return one paragraph: the student's number, its distance to the best of the others, and how sure that is."""
    split = primary_split(rows)
    student = best(rows, "student", split) if split else None
    if student is None or split is None:
        return unfinished(run)
    measure = student.label
    kind = mapping(run.results.get("student")).get("kind")
    size = "" if student.parameters is None else f", {count(student.parameters)} parameters"
    sentences = [
        f"On {split}{_samples(student)} the student ({kind or 'student'}{size}) reaches "
        f"{percent(student.headline)} {measure}"
    ]
    baseline, teacher = best(rows, "baseline", split), best(rows, "teacher", split)
    others = [("best baseline", baseline), ("best teacher", teacher)]
    told = [_distance(student, row, noun) for noun, row in others if row is not None]
    sentences[0] += (": " + ", and ".join(told) if told else "") + "."
    if baseline is None:
        sentences.append("No baseline was run, so this page can't say what the teachers added.")
    elif (margin := sampling_margin(student, baseline)) is not None:
        inside = abs(student.headline - baseline.headline) < margin
        sentences.append(
            f"With {count(student.n)} samples, differences below about {100 * margin:.1f} points may be sampling noise"
            + ("; the one to the best baseline is below that." if inside else ".")
        )
    sentences += other_splits(rows, split)
    sentences.append("One run is one seed; compare several with 'moekd report RUN RUN ...'.")
    return " ".join(sentences)


def other_splits(rows: Sequence[Row], primary: str) -> list[str]:
    """Say for each further split where the student stands against the best baseline there."""
    told = []
    for split in dict.fromkeys(row.split for row in rows if row.split != primary):
        student, baseline = best(rows, "student", split), best(rows, "baseline", split)
        if student is not None and baseline is not None:
            margin = sampling_margin(student, baseline)
            noise = margin is not None and abs(student.headline - baseline.headline) < margin
            words = (
                f"On {split} it reaches {percent(student.headline)}: {_distance(student, baseline, 'best baseline')}"
            )
            told.append(words + (", within sampling noise." if noise else "."))
    return told


def sampling_margin(a: Row, b: Row) -> float | None:
    """Half width of the 95% interval of the difference of two accuracies, as if measured on separate samples.

    Both models see the same samples, which makes the true margin smaller. None for pixels, which are not independent.
    """
    if a.measure != "accuracy" or not a.n or not b.n or math.isnan(a.accuracy) or math.isnan(b.accuracy):
        return None
    return 1.96 * math.sqrt(a.accuracy * (1 - a.accuracy) / a.n + b.accuracy * (1 - b.accuracy) / b.n)


def unfinished(run: Run) -> str:
    """Say how far a run without test results has come."""
    words = "This run has no test results yet."
    if not run.records:
        return f"{words} It has recorded nothing yet."
    phase = str(run.records[-1].get("phase", "main"))
    words += "" if phase == "main" else f" It is at the baseline '{phase}'."
    measured = [record for record in run.of_type("validation") if record.get("phase", "main") == "main"]
    if not measured:
        return f"{words} The student has not been validated yet."
    last = measured[-1]
    metrics = dict(mapping(last.get("metrics")))
    metric = monitored(metrics)
    value = f", {metric.replace('_', ' ')} {number(metrics[metric]):.3f}" if metric else ""
    epoch = count(number(last.get("epoch")) + 1)
    return f"{words} Last validation of the student: stage {last.get('stage')}, epoch {epoch}{value}."


def key_numbers(run: Run, rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return (label, number, detail) for the tiles at the top of the page."""
    split = primary_split(rows)
    if split is None:
        return []
    student, teacher = best(rows, "student", split), best(rows, "teacher", split)
    tiles = []
    if student is not None:
        where = f"on {split}" if student.measure in ("accuracy", "miou") else f"{student.label}, on {split}"
        tiles.append(("Student", percent(student.headline), where))
    others = [("Best baseline", best(rows, "baseline", split)), ("Best teacher", teacher)]
    tiles += [(noun, percent(row.headline), row.model) for noun, row in others if row is not None]
    if student is not None and student.parameters is not None:
        tiles.append(("Parameters", count(student.parameters), _ratio(student, teacher)))
    seconds = number(run.results.get("seconds"))
    if not math.isnan(seconds):
        tiles.append(("Time", duration(seconds), "whole run"))
    return tiles


def duration(seconds: float) -> str:
    """Format a duration: "-" for NaN, else seconds, minutes or hours."""
    if math.isnan(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def routing_sentence(run: Run) -> str:
    """Say how good the router's choice was, from the losses of chosen and best variants; empty if unknown."""
    routing = mapping(run.results.get("routing"))
    chosen, oracle, mean = (number(routing.get(key)) for key in ("chosen_loss", "oracle_loss", "mean_loss"))
    if math.isnan(chosen):
        return ""
    words = f"Cross-entropy of the chosen teacher: {chosen:.3f} nats"
    words += "" if math.isnan(mean) else f" (all variants on average: {mean:.3f})"
    words += "." if math.isnan(oracle) else f"; always choosing the best variant would give {oracle:.3f}."
    agreement, chance = (number(routing.get(key)) for key in ("oracle_agreement", "chance_agreement"))
    if not math.isnan(agreement):
        by_chance = "" if math.isnan(chance) else f", against {percent(chance)} by chance"
        words += f" The choice was the best variant for {percent(agreement)} of the rows{by_chance}."
    return words


def _distance(student: Row, other: Row, noun: str) -> str:
    gap = 100 * (student.headline - other.headline)
    rounded = f"{abs(gap):.1f}"
    where = "level with" if rounded == "0.0" else f"{rounded} points {'above' if gap > 0 else 'below'}"
    return f"{where} the {noun}, {other.model} ({percent(other.headline)})"


def _samples(row: Row) -> str:
    return "" if row.n is None else f" ({count(row.n)} {'pixels' if row.dense else 'samples'})"


def _ratio(student: Row, teacher: Row | None) -> str:
    """Compare the sizes of student and teacher, where both are known and the student is the smaller one."""
    if teacher is None or not teacher.parameters or not student.parameters or teacher.parameters <= student.parameters:
        return "of the student"
    return f"{teacher.parameters / student.parameters:.1f}x fewer than {teacher.model}"
