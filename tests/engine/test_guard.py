"""A loss or gradient that is no number stops the run before the optimizer moves, and says what and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.checkpoint import find_latest, load_checkpoint
from moekd.errors import DataError, NonFiniteError
from moekd.program import Program
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

from .tiny import MLP, recipe_of, same_weights, simple, train, weights_of

BRITTLE = {"kind": "tiny_brittle", "inputs": ["left"]}


def fail(raw: dict[str, Any], runs: Path, error: type[Exception]) -> tuple[Program, str]:
    """Run a config that fails; return its program and the message."""
    program = recipe_of(raw).build()
    with pytest.raises(error) as caught:
        Trainer(program, RunFolder(runs, "run"), quiet=True).fit()
    return program, str(caught.value)


def data(**options: Any) -> dict[str, Any]:
    return {"kind": "tiny", "batch_size": 8, **options}


def test_a_bad_input_names_the_sample(tmp_path: Path) -> None:
    raw = simple(data=data(nan_ids=[13]))
    _, message = fail(raw, tmp_path, DataError)
    assert message == "bad sample 13 in split 'train' (point 13): field 'left' holds NaN or infinite values"


@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_bad_inputs_are_handled_as_declared(tmp_path: Path, policy: str) -> None:
    raw = simple(data=data(nan_ids=[3, 13], on_bad_sample=policy, max_bad_fraction=0.1))
    run = train(raw, tmp_path)
    assert run.records("stage_end")[0]["steps"] == 10
    assert all(torch.isfinite(value).all() for value in run.weights().values())


def test_a_batch_of_bad_inputs_only_is_left_out(tmp_path: Path) -> None:
    raw = simple({"optimizer": "sgd"}, data=data(rows=9, nan_ids=list(range(8)), on_bad_sample="skip"))
    raw["data"]["max_bad_fraction"] = 1.0
    run = train(raw, tmp_path)
    assert run.records("stage_end")[0]["steps"] == 4
    assert run.records("train")
    assert all(torch.isfinite(value).all() for value in run.weights().values())


def test_a_bad_output_names_model_step_and_samples(tmp_path: Path) -> None:
    _, message = fail(simple(student=BRITTLE, data=data(magic_ids=[5, 21])), tmp_path, NonFiniteError)
    first, *lines = message.splitlines()
    assert first.startswith("main, stage 'learn', epoch 0, step ")
    assert first.endswith(": the loss is not finite")
    logits = next(line for line in lines if "logits of the student is not finite in 1 of 8 rows" in line)
    assert logits.endswith(("sample ids: 5", "sample ids: 21"))
    assert any(line.strip().startswith("loss terms that are not finite: cross_entropy/student=") for line in lines)
    assert "the last checkpoint is untouched" in lines[-1]


def test_the_weights_are_those_of_the_last_good_step(tmp_path: Path) -> None:
    raw = simple(student=BRITTLE, data=data(magic_ids=[5]))
    raw["trainer"]["checkpoint_every"] = 1
    program, message = fail(raw, tmp_path, NonFiniteError)
    step = int(message.split("step ")[1].split(":")[0])
    assert step > 0
    newest, skipped = find_latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert skipped == []
    saved, _ = load_checkpoint(newest)
    assert saved["stage"]["loop"]["step"] == step
    now = program.phases[0].student.state_dict()
    assert all(torch.equal(value, now[key]) for key, value in saved["models"]["students"]["main"].items())
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["step"] <= step for record in records)


def test_a_bad_teacher_is_named(tmp_path: Path) -> None:
    raw = simple(
        {"objectives": ["cross_entropy", "kd"], "cache": "off"},
        data=data(magic_ids=[30]),
        student=MLP | {"inputs": ["right"], "in_features": 10},
        teachers={"brittle": BRITTLE},
    )
    _, message = fail(raw, tmp_path, NonFiniteError)
    assert "logits of teacher 'brittle' is not finite in 1 of 8 rows; sample ids: 30" in message
    assert "loss terms that are not finite: kd=nan; finite: cross_entropy/student=" in message
    assert "logits of the student" not in message


def test_a_bad_teacher_is_named_from_the_cache_too(tmp_path: Path) -> None:
    raw = simple(
        {"objectives": ["kd"], "cache": "memory"},
        data=data(magic_ids=[30]),
        student=MLP | {"inputs": ["right"], "in_features": 10},
        teachers={"brittle": BRITTLE},
    )
    _, message = fail(raw, tmp_path, NonFiniteError)
    assert "logits of teacher 'brittle' is not finite in 1 of 8 rows; sample ids: 30" in message


def test_a_bad_term_is_named(tmp_path: Path) -> None:
    raw = simple({"objectives": ["cross_entropy", {"kind": "tiny_poison", "from_epoch": 1}], "epochs": 3}, data=data())
    program, message = fail(raw, tmp_path, NonFiniteError)
    assert message.startswith("main, stage 'learn', epoch 1, step 5: the loss is not finite")
    assert "not finite: tiny_poison=nan; finite: cross_entropy/student=" in message
    assert "sample ids of the batch: " in message
    newest, _ = find_latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    saved = load_checkpoint(newest)[0]["models"]["students"]["main"]
    now = program.phases[0].student.state_dict()
    assert all(torch.equal(value, now[key]) for key, value in saved.items())


def test_a_bad_gradient_stops_before_the_step(tmp_path: Path) -> None:
    poison = {"kind": "tiny_poison", "from_epoch": 0, "gradient": True}
    raw = simple({"objectives": ["cross_entropy", poison]}, data=data())
    program, message = fail(raw, tmp_path, NonFiniteError)
    assert message.startswith("main, stage 'learn', epoch 0, step 0: the loss is finite, but its gradient is not")
    assert "4 of 4 parameters: student: network.fc1.weight, " in message
    assert same_weights(weights_of(program), weights_of(recipe_of(raw).build())) == []


def test_a_diverged_run_goes_on_from_its_checkpoint_with_a_smaller_rate(tmp_path: Path) -> None:
    raw = simple({"objectives": ["cross_entropy", {"kind": "tiny_poison", "from_epoch": 1}], "epochs": 2}, data=data())
    fail(raw, tmp_path, NonFiniteError)
    raw["stages"][0]["objectives"] = ["cross_entropy", {"kind": "tiny_poison", "from_epoch": 9}]
    run = train(raw, tmp_path, resume="auto", allow=["stages[0].objectives"])
    assert run.records("stage_end")[0]["epochs"] == 2


def test_validation_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    raw = simple({"optimizer": {"kind": "sgd", "lr": 1e30}, "epochs": 3}, data=data(batch_size=40))
    _, message = fail(raw, tmp_path, NonFiniteError)
    assert message
