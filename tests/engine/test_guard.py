"""N1, N2: a loss or gradient that is no number stops the run before the optimizer moves, says what and where, or is
left out under a policy with a bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moekd.checkpoint import find_latest, load_checkpoint
from moekd.errors import DataError, NonFiniteError
from moekd.networks import NETWORKS
from moekd.program import Program
from moekd.signals import Signals
from moekd.stages.guard import FiniteGuard
from moekd.stages.loop_state import LoopState
from moekd.stages.recovery import MOST_OVERFLOWS, NonFinitePolicy, Recovery
from moekd.stages.train import TrainLoop
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

from ..objectives.towers import TwoTowers
from .test_distributed import in_two
from .tiny import MAGIC, MLP, PowerCutError, cut_after, recipe_of, same_weights, simple, train, weights_of

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
    """N1: NaN in an input: the sample is named before the first step."""
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
    """N1: a network that divides by zero: model, step, term and samples are named."""
    _, message = fail(simple(student=BRITTLE, data=data(magic_ids=[5, 21])), tmp_path, NonFiniteError)
    first, *lines = message.splitlines()
    assert first.startswith("main, stage 'learn', epoch 0, step ")
    assert first.endswith(": the loss is not finite")
    logits = next(line for line in lines if "logits of the student is not finite in 1 of 8 rows" in line)
    assert logits.endswith(("sample ids: 5", "sample ids: 21"))
    assert any(line.strip().startswith("loss terms that are not finite: cross_entropy/student=") for line in lines)
    assert "the last checkpoint is untouched" in lines[-1]


def test_the_weights_are_those_of_the_last_good_step(tmp_path: Path) -> None:
    """N1: the bad step moved nothing, and nothing of it is saved or logged."""
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
    """N1: a teacher that gives NaN is named."""
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
    """N1: also where its signals come from memory."""
    raw = simple(
        {"objectives": ["kd"], "cache": "memory"},
        data=data(magic_ids=[30]),
        student=MLP | {"inputs": ["right"], "in_features": 10},
        teachers={"brittle": BRITTLE},
    )
    _, message = fail(raw, tmp_path, NonFiniteError)
    assert "logits of teacher 'brittle' is not finite in 1 of 8 rows; sample ids: 30" in message


def test_a_bad_term_is_named(tmp_path: Path) -> None:
    """N1: one loss term of two is NaN."""
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
    """N1: a finite loss with an infinite gradient."""
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


POISON = {"kind": "tiny_poison", "from_epoch": 0}
NORMALISED = {"kind": "small_cnn", "inputs": ["image"], "in_channels": 1, "channels": [4], "hidden": 8}


def policy(raw: dict[str, Any], name: str, most: int = 10, **trainer: Any) -> dict[str, Any]:
    """Return the config with a policy for steps that are not finite."""
    return raw | {"trainer": raw["trainer"] | {"on_nonfinite": name, "max_nonfinite": most} | trainer}


def saved(run: Path, index: int) -> dict[str, Any]:
    """Return the state of a checkpoint of a run."""
    return load_checkpoint(run / "run" / "checkpoints" / f"{index:06d}")[0]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", ["skip", "rollback"])
def test_bad_steps_change_nothing(tmp_path: Path, name: str, gradient: bool) -> None:
    """N2: under `skip` and `rollback` neither weights nor batch statistics nor the optimizer move in a bad step."""
    poison = POISON | {"epochs": 1, "gradient": gradient}
    raw = simple({"objectives": ["cross_entropy", poison], "accumulate": 2, "ema": 0.5}, student=NORMALISED)
    before = weights_of(recipe_of(policy(raw, name)).build())
    run = train(policy(raw, name, checkpoint_every=None), tmp_path)
    student = saved(tmp_path, 0)["models"]["students"]["main"]
    assert same_weights(before, {f"student of main: {key}": value for key, value in student.items()}) == []
    assert saved(tmp_path, 0)["stage"]["optimizer"]["state"] == {}
    (end,) = run.records("stage_end")
    assert (end["nonfinite_steps"], end["steps"]) == (2, 4)
    assert same_weights(before, run.weights())
    assert all(bool(torch.isfinite(value).all()) for value in run.weights().values())
    assert [record["nonfinite_steps"] for record in run.records("train")][-1] == 2


def test_a_skipped_step_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """N2: the message of a skipped step names what a stop would have named."""
    with caplog.at_level("WARNING"):
        run = train(policy(simple(student=BRITTLE, data=data(magic_ids=[5])), "skip"), tmp_path)
    (end,) = run.records("stage_end")
    assert end["nonfinite_steps"] == 2
    said = [record.getMessage() for record in caplog.records if "is not finite" in record.getMessage()]
    assert len(said) == 2
    assert all("in 1 of 8 rows; sample ids: 5" in line for line in said)
    assert said[-1].endswith("(skipped, 2 so far)")


@pytest.mark.parametrize(("name", "since"), [("skip", "in a row"), ("rollback", "since the last checkpoint")])
def test_too_many_bad_steps_stop_the_run(tmp_path: Path, name: str, since: str) -> None:
    """N2: more than `max_nonfinite` of them end the run with the explanation of the last."""
    raw = policy(simple({"objectives": ["cross_entropy", POISON]}, data=data()), name, 3)
    _, message = fail(raw, tmp_path, NonFiniteError)
    assert message.startswith(f"4 steps {since} were not finite, more than trainer.max_nonfinite (3) allows")
    assert "step 3: the loss is not finite" in message


def test_rollback_takes_the_weights_of_the_last_checkpoint(tmp_path: Path) -> None:
    """N2: after a rollback the weights and the optimizer's memory are those that were saved."""
    raw = simple({"objectives": ["cross_entropy", POISON | {"from_epoch": 1}], "epochs": 2}, data=data())
    run = train(policy(raw, "rollback", checkpoint_every=None), tmp_path)
    first, last = saved(tmp_path, 0), saved(tmp_path, 1)
    weights = [state["models"]["students"]["main"] for state in (first, last)]
    assert same_weights(*weights) == []
    moments = [state["stage"]["optimizer"]["state"] for state in (first, last)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])
    assert run.records("stage_end")[0]["nonfinite_steps"] == 5


@pytest.mark.parametrize("name", ["skip", "rollback"])
def test_a_cut_run_with_bad_steps_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """N2: counters and what is put back are the same in a run that was cut and went on."""
    raw = policy(simple({"epochs": 3}, student=BRITTLE, data=data(magic_ids=[5])), name)
    whole = train(raw, tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_after(patch, 8)
        with pytest.raises(PowerCutError):
            train(raw, tmp_path / "cut")
    resumed = train(raw, tmp_path / "cut", resume="auto")
    assert same_weights(whole.weights(), resumed.weights()) == []
    assert whole.records() == resumed.records()


def test_bad_losses_that_are_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """N1: as on a GPU: the first bad step is kept on the device, and read before anything is logged or saved."""
    monkeypatch.setattr(FiniteGuard, "_waits", lambda guard, value: True)
    raw = simple(student=BRITTLE, data=data(magic_ids=[5]))
    raw["trainer"] |= {"checkpoint_every": 1, "log_every": 3}
    _, message = fail(raw, tmp_path, NonFiniteError)
    step = int(message.split("step ")[1].split(":")[0])
    assert "loss or gradient is not finite; sample ids: " in message
    assert "5" in message.split("sample ids: ")[1].split(", ")
    newest, _ = find_latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    saved_step = load_checkpoint(newest)[0]["stage"]["loop"]["step"]
    assert saved_step == step


class BrittleTowers(TwoTowers):
    """Two towers whose image's embedding is infinite on magic rows."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Signals:
        return super().forward(left_BD / (left_BD[:, :1] != MAGIC), right_BD)


def test_a_bad_embedding_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """N1: models without a classifier are named by what they say."""
    monkeypatch.setitem(NETWORKS._members, "brittle_towers", BrittleTowers)
    student = {"kind": "brittle_towers", "inputs": ["left", "right"]}
    raw = simple({"objectives": ["contrastive"]}, student=student, data=data(magic_ids=[5]))
    _, message = fail(raw, tmp_path, NonFiniteError)
    assert "embedding 'image' of the student is not finite in 1 of 8 rows; sample ids: 5" in message
    assert "embedding 'text'" not in message


def test_scaled_gradients_that_always_overflow() -> None:
    """N1: fp16 lowers its scale at an overflow; where no scale helps, the run ends with a message."""
    recovery = Recovery(NonFinitePolicy(), LoopState(), [], list)
    for _ in range(MOST_OVERFLOWS):
        recovery.stepped(True)
    recovery.stepped(False)
    for _ in range(MOST_OVERFLOWS):
        recovery.stepped(True)
    with pytest.raises(NonFiniteError, match="51 steps in a row were not finite in fp16, whatever the loss scale"):
        recovery.stepped(True)


def bilevel(policy_name: str, magic: list[int]) -> dict[str, Any]:
    """Return a bilevel run whose held-out rows (ids from 40) break the student."""
    raw = simple(
        {"kind": "bilevel", "trains": ["student", "router"], "objectives": ["cross_entropy", "routed_kd"]},
        student=BRITTLE,
        teachers={"a": MLP, "b": MLP},
        router={"gate": "mlp", "selection": "dense", "combine": "loss", "signal": "bilevel"},
        data=data(magic_ids=magic),
    )
    return policy(raw, policy_name, 20)


def test_a_bad_outer_step(tmp_path: Path) -> None:
    """N1: a held-out loss that is no number never moves the router."""
    before = weights_of(recipe_of(bilevel("raise", [])).build())
    program, message = fail(bilevel("raise", list(range(40, 58))), tmp_path, NonFiniteError)
    assert "outer step, step 0: the loss is finite, but its gradient is not" in message
    assert "router: " in message
    assert same_weights(before, weights_of(program)) == []


def test_a_skipped_outer_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """N2: `skip` leaves out the outer step, and the step of the student that would follow."""
    monkeypatch.setattr(TrainLoop, "validate", lambda loop: {})  # on the rows that break the student
    raw = bilevel("skip", [])
    before = weights_of(recipe_of(raw).build())
    run = train(bilevel("skip", list(range(40, 58))), tmp_path)
    assert run.records("stage_end")[0]["nonfinite_steps"] == 10
    assert same_weights(before, run.weights()) == []


def test_two_processes_skip_together(tmp_path: Path) -> None:
    """N2: a step that is bad in one of two processes is skipped in both, and they go on."""
    raw = policy(simple(student=BRITTLE, data=data(magic_ids=[5])), "skip")
    (first, said), (second, _) = in_two(raw, tmp_path)
    assert (first, second) == (0, 0), said
    assert said.count("logits of the student is not finite in 1 of 4 rows; sample ids: 5") == 2
    run = RunFolder(tmp_path, "run", resume=True)
    assert next(record for record in run.read_metrics() if record["type"] == "stage_end")["nonfinite_steps"] == 2
