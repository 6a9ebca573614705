"""The soak of kills and damage: it passes on a small run, and notices what is wrong."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moekd.benchmarks import reliability, run_reliability
from moekd.benchmarks.reliability_damage import _try
from moekd.benchmarks.reliability_kills import differences, killed_runs, undisturbed
from moekd.checkpoint import find_latest, load_checkpoint, save_checkpoint
from moekd.errors import CheckpointError, ConfigError

TINY = ["data.max_train=64", *(f"stages.{stage}.epochs=1" for stage in ("cotrain", "specialise", "distill"))]


def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    """R2: `kill -9` at random moments; and the comparison sees every other tensor and record."""
    whole = undisturbed(tmp_path / "whole", TINY)
    found = killed_runs(whole, tmp_path / "killed", kills=1, seed=3, overrides=TINY)
    assert found == {"trials": 1, "detected": 1, "failed": 0, "said": ""}
    run = tmp_path / "killed" / "run"
    newest, _ = find_latest(run / "checkpoints")
    assert newest is not None
    state, meta = load_checkpoint(newest)
    weights = state["models"]["students"]["main"]
    name = next(key for key, value in weights.items() if value.is_floating_point())
    weights[name] = torch.nextafter(weights[name], torch.tensor(9.0))
    save_checkpoint(run / "checkpoints", "other", state, meta)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"type": "train"}\n')
    assert differences(whole, run) == [f".students.main.{name}", "metrics.jsonl"]
    shutil.rmtree(run / "checkpoints")
    assert "no readable newest checkpoint" in differences(whole, run)[0]


def test_other_numbers_are_a_failure(tmp_path: Path) -> None:
    """C1: a reader that checks nothing is found out; one that refuses everything else passes."""
    save_file({"w": torch.arange(4096.0)}, tmp_path / "w.safetensors")
    original = (tmp_path / "w.safetensors").read_bytes()

    def careful(folder: Path) -> dict[str, torch.Tensor]:
        if (folder / "w.safetensors").read_bytes() != original:
            raise CheckpointError("changed")
        return load_file(folder / "w.safetensors")

    def careless(folder: Path) -> dict[str, torch.Tensor]:
        return load_file(folder / "w.safetensors")

    found = _try(tmp_path, careful, 20, random.Random(0))
    assert (found["detected"], found["failed"]) == (20, 0)
    found = _try(tmp_path, careless, 40, random.Random(0))
    assert found["failed"] > 5
    assert "other numbers, and nothing said" in found["said"]
    assert (tmp_path / "w.safetensors").read_bytes() == original


def test_tables_are_written_and_parts_checked(tmp_path: Path) -> None:
    rows = [
        {"part": "saves", "case": "newest", "trials": 3, "detected": 1, "harmless": 1, "failed": 1, "said": "kill 2"},
        {"part": "cost", "case": "checks", "trials": 3, "value": 1.2345, "unit": "%", "target": 2.0},
    ]
    table = reliability.write_reliability(rows, tmp_path, "the command", 0.5).read_text()
    assert "| newest | 3 | 1 | 1 | 1 |\n" in table
    assert "| checks | 1.23 % | at most 2 % |  |" in table
    assert (tmp_path / "reliability.csv").read_text().splitlines()[1] == "saves,newest,3,1,1,1,,,,kill 2"
    with pytest.raises(ConfigError, match=r"unknown part 'kils'; did you mean 'kills'\?"):
        run_reliability(["kils"])
