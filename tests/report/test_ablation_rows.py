"""The CSV file of an ablation: stable columns, six digits, there and back."""

from __future__ import annotations

import csv
import io
import math

import pytest
from example_ablation import EVIL, damaged_rows, example_rows

from moekd.errors import DataError
from moekd.report.ablation_rows import COLUMNS, ordered, read_ablation_csv, rows_to_csv


def test_one_line_a_row_with_stable_columns():
    rows = damaged_rows()
    lines = list(csv.reader(io.StringIO(rows_to_csv(rows))))
    assert tuple(lines[0]) == COLUMNS
    assert len(lines) == len(rows) + 1
    assert {len(line) for line in lines} == {len(COLUMNS)}


def test_there_and_back(tmp_path):
    rows = damaged_rows()
    path = tmp_path / "a.csv"
    path.write_text(rows_to_csv(rows))
    for row, read in zip(rows, read_ablation_csv(path), strict=True):
        for key in ("setting", "split", "arm", "title", "seed", "status", "reason"):
            assert read[key] == row[key]
        for key in ("accuracy", "loss", "seconds_per_step"):
            assert read[key] == (None if row[key] is None else pytest.approx(row[key], rel=1e-5, nan_ok=True))
        assert (read["routing"] is None) == (row["routing"] is None)
        if row["routing"]:
            assert read["routing"]["variants"] == row["routing"]["variants"]
            assert read["routing"]["entropy"] == pytest.approx(row["routing"]["entropy"], rel=1e-5)
        assert read["teachers"] == row["teachers"]
    assert rows_to_csv(read_ablation_csv(path)) == path.read_text()
    assert EVIL in {row["title"] for row in read_ablation_csv(path)}


def test_not_finite_and_not_measured_are_told_apart(tmp_path):
    row = dict(example_rows(1, 1, 1)[0]) | {"accuracy": math.nan, "loss": math.inf, "weighted_f1": None, "seed": None}
    (tmp_path / "a.csv").write_text(rows_to_csv([row]))
    read = read_ablation_csv(tmp_path / "a.csv")[0]
    assert math.isnan(read["accuracy"])
    assert read["loss"] == math.inf
    assert read["weighted_f1"] is None
    assert read["seed"] is None


def test_another_metric_gets_a_column(tmp_path):
    rows = [row | {"miou": 0.25} for row in example_rows(1, 1, 1)]
    (tmp_path / "a.csv").write_text(rows_to_csv(rows, "miou"))
    assert read_ablation_csv(tmp_path / "a.csv")[0]["miou"] == 0.25


def test_rows_are_ordered_by_setting_split_arm_and_seed():
    rows = example_rows(3, 2, 2)
    shuffled = rows[1::2] + rows[::2][::-1]
    settings = ["corrupted, 400 labels", "400 labels"]
    found = ordered(shuffled, settings, ["single", "alone", "uniform"])
    places = [(r["setting"], r["split"], r["arm"], r["seed"]) for r in found]
    assert places[:3] == [(settings[0], "test", "single", s) for s in (0, 1)] + [(settings[0], "test", "alone", 0)]
    assert places == [
        (r["setting"], r["split"], r["arm"], r["seed"]) for r in ordered(found[::-1], settings, ["single", "alone"])
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "lacks the columns setting"),
        ("", "lacks the columns"),
        (",".join(COLUMNS) + "\nonly,three,cells\n", "line 2: expected as many cells"),
        (
            ",".join(COLUMNS)
            + "\n"
            + ",".join(["s", "test", "a", "t", "zero", "done", ""] + [""] * (len(COLUMNS) - 7)),
            "zero",
        ),
        (
            ",".join(COLUMNS)
            + "\n"
            + ",".join(["s", "test", "a", "t", "0", "done", "", "high"] + [""] * (len(COLUMNS) - 8)),
            "high",
        ),
    ],
    ids=["other_table", "empty", "short_line", "bad_seed", "bad_number"],
)
def test_what_is_no_such_table_is_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_ablation_csv(tmp_path / "a.csv")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        read_ablation_csv(tmp_path / "absent.csv")
