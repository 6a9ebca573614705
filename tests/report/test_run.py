"""Reading run folders in any state."""

from __future__ import annotations

import math

import pytest
from example_run import write_example_run

from moekd.report.run import number, numbers, read_run

FILES = ["config.yaml", "results.json", "environment.json", "metrics.jsonl"]
DAMAGE = {"truncated": b'{"a": [', "binary": b"\xff\xfe\x00", "list": b"[1, 2]\n"}


def test_whole_run_has_no_notes(tmp_path):
    run = read_run(write_example_run(tmp_path / "run"))
    assert run.notes == []
    assert (run.name, run.title, run.dataset) == ("run", "AV-MNIST, image student", "avmnist")
    assert run.teachers == ["multimodal", "audio"]
    assert next(iter(run.stages("stage_end"))) == ("main", "cotrain")
    assert len(run.stages("train")["main", "distill"]) == 10


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [None, *DAMAGE])
def test_each_missing_or_damaged_file_gives_one_note(tmp_path, name, damage):
    path = write_example_run(tmp_path / "run")
    if damage is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(DAMAGE[damage])
    run = read_run(path)
    assert len(run.notes) == 1
    assert run.notes[0].startswith(name)
    assert run.title == "AV-MNIST, image student", "config and results both know the title"


def test_numbers_that_are_not_there_are_nan():
    assert [number(value) for value in (1, 0.5)] == [1.0, 0.5]
    assert all(math.isnan(number(value)) for value in (None, "1", True, [], math.nan))
    assert numbers([1, 2]) == [1.0, 2.0]
    assert numbers("12") == numbers(None) == []
