"""Rows of the results, their order, and how they are printed."""

from __future__ import annotations

import io
import json
import math

from example_run import write_example_run
from rich.console import Console

from moekd.report import print_table, results_table
from moekd.report.table import best, count, decimal, percent, points


def example(tmp_path, **options):
    return json.loads((write_example_run(tmp_path / "run", **options) / "results.json").read_text())


def printed(results):
    console = Console(file=io.StringIO(), width=120)
    print_table(results, console=console)
    return console.file.getvalue()


def test_order_is_student_then_baselines_then_teachers_best_first(tmp_path):
    rows = [row for row in results_table(example(tmp_path)) if row.split == "test"]
    assert [row.model for row in rows] == [
        "student",
        "uniform_mix",
        "kd_multimodal",
        "student_alone",
        "kd_audio",
        "multimodal",
        "audio",
    ]
    assert [row.role for row in rows] == ["student"] + ["baseline"] * 4 + ["teacher"] * 2
    assert rows[0].parameters == 61706
    assert rows[1].title == "uniform mix of all variants"


def test_roles_come_from_results_routing_or_config():
    test = {"test": {name: {"accuracy": 0.5} for name in ("student", "a", "b", "c", "d")}}
    results = {"test": test["test"] and test, "teachers": ["a"], "routing": {"variants": ["b/fc1"]}}
    roles = {row.model: row.role for row in results_table(results, teachers=["c"])}
    assert roles == {"student": "student", "a": "teacher", "b": "teacher", "c": "teacher", "d": "baseline"}


def test_main_split_comes_first():
    results = {"test": {name: {"student": {"accuracy": 0.5}} for name in ("test_far", "test", "test_near")}}
    assert [row.split for row in results_table(results)] == ["test", "test_far", "test_near"]


def test_unknown_numbers_are_nan_and_never_best():
    rows = results_table({"test": {"test": {"a": {"accuracy": None}, "b": {"accuracy": 0.1}, "c": {}}}})
    assert [row.model for row in rows] == ["b", "a", "c"]
    assert best(rows, "baseline", "test").model == "b"
    assert best(rows, "teacher", "test") is None
    assert math.isnan(rows[-1].loss)
    assert rows[-1].parameters is None


def test_printed_table_has_the_numbers_and_no_markup(tmp_path):
    results = example(tmp_path)
    results["test"]["test"]["[red]odd[/red]"] = {"accuracy": 0.123}
    text = printed(results)
    for part in ("samples)", "test_unseen_style", "64.1%", "1,809,752", "[red]odd[/red]", "12.3%"):
        assert part in text, part
    assert "mIoU" not in text
    assert "mIoU" in printed(example(tmp_path / "dense", dense=True))
    assert "No test results." in printed({})


def test_number_formats():
    assert (percent(0.6414), percent(math.nan)) == ("64.1%", "-")
    assert (decimal(1.23456), decimal(math.nan)) == ("1.235", "-")
    assert (points(0.0123), points(-0.2), points(math.nan)) == ("+1.2", "-20.0", "-")
    assert (count(61706), count(None), count(math.nan)) == ("61,706", "-", "-")
