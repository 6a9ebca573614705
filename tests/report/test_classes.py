"""Which classes are shown."""

from __future__ import annotations

import math

from example_run import write_example_run

from moekd.report.classes import ClassRow, class_accuracy, class_names, class_rows, frequent, teacher_use
from moekd.report.figures import styled
from moekd.report.run import read_run
from moekd.report.table import best, results_table


def rows(*sizes):
    return [ClassRow(f"c{index}", size, 0.5, 0.4) for index, size in enumerate(sizes)]


def test_few_classes_stay_in_label_order():
    assert frequent(rows(1, 3, 2), limit=3) == ([0, 1, 2], "")


def test_many_classes_are_chosen_by_size():
    assert frequent(rows(1, 3, 2, 9), limit=2) == ([3, 1], "The 2 most frequent of 4 classes.")


def test_unknown_sizes_are_said_to_be_unknown():
    shown, note = frequent(rows(1, math.nan, 2), limit=2)
    assert shown == [0, 1]
    assert note == "The first 2 of 3 classes; class sizes are unknown."


def test_rows_hold_student_and_baseline(tmp_path):
    run = read_run(write_example_run(tmp_path / "run", absent_class=True))
    table = results_table(run.results, run.teachers)
    found = class_rows(run, best(table, "student", "test"), best(table, "baseline", "test"))
    models = run.results["test"]["test"]
    assert [row.name for row in found] == run.results["class_names"]
    assert math.isnan(found[0].student)
    assert found[3].difference == (
        models["student"]["per_class_accuracy"][3] - models["uniform_mix"]["per_class_accuracy"][3]
    )
    assert class_rows(run, None, None) == []


def test_missing_names_are_numbers(tmp_path):
    run = read_run(write_example_run(tmp_path / "run", classes=["a"]))
    assert class_names(run, 3) == ["a", "class 1", "class 2"]


def test_words_count_gains_and_losses():
    chosen = [ClassRow("a", 1, 0.9, 0.5), ClassRow("b", 1, 0.4, 0.5), ClassRow("c", 1, 0.5, math.nan)]
    with styled():
        (drawing,) = class_accuracy(chosen, [0, 1, 2], "", "alone")
    assert "better in 1 and worse in 1 classes than alone" in drawing.alt


def test_heat_map_names_the_first_variants(tmp_path):
    run = read_run(write_example_run(tmp_path / "run", classes=["a", "b"]))
    run.results["routing"] |= {"variants": ["x", "y", "z"], "by_class": [[0.1, 0.9, 0.0], [None, None, None]]}
    with styled():
        (drawing,) = teacher_use(run, [])
    assert drawing.alt.endswith("first in some class: y.")
    run.results["routing"]["by_class"] = [[0.5]]
    assert teacher_use(run, []) == []
