"""What the settings of a stage do: length, accumulation, clipping, moving average, monitor, optimizer, precision."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.errors import ConfigError
from moekd.stages.train import TrainLoop

from .tiny import MLP, Finished, full, recipe_of, same_weights, simple, train


def student_of(finished: Finished) -> dict[str, torch.Tensor]:
    """Return the weights of the student."""
    return {key: value for key, value in finished.weights().items() if key.startswith("student of main")}


def furthest(a: Finished, b: Finished) -> float:
    """Return the largest difference of the students' weights."""
    x, y = student_of(a), student_of(b)
    return max(float((x[key] - y[key]).abs().max()) for key in x)


def with_batch(size: int, stage: dict[str, Any], **data: Any) -> dict[str, Any]:
    return simple(stage, data={"kind": "tiny", "batch_size": size, **data})


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 0.05}], ids=["plain", "clipped"])
def test_four_small_batches_are_one_large_one(tmp_path: Path, clip: dict[str, Any]) -> None:
    """R11: a whole run with four batches a step."""
    large = train(with_batch(40, clip), tmp_path, "large")
    small = train(with_batch(10, {"accumulate": 4, **clip}), tmp_path, "small")
    assert large.records("stage_end")[0]["steps"] == small.records("stage_end")[0]["steps"] == 2
    assert furthest(large, small) < 1e-6
    assert furthest(large, train(with_batch(10, clip), tmp_path, "separate")) > 1e-4


def test_a_rest_of_batches_makes_a_step_of_its_own(tmp_path: Path) -> None:
    run = train(with_batch(10, {"accumulate": 3, "epochs": 3}), tmp_path)
    assert run.records("stage_end")[0]["steps"] == 6


def test_steps_instead_of_epochs(tmp_path: Path) -> None:
    steps = train(simple({"steps": 6}), tmp_path, "steps")
    epochs = train(simple({"epochs": 2}), tmp_path, "epochs")
    assert same_weights(steps.weights(), epochs.weights()) == []
    (end,) = train(simple({"steps": 4}), tmp_path, "four").records("stage_end")
    assert (end["steps"], end["epochs"]) == (4, 2)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    sgd = {"kind": "sgd", "lr": 1.0}
    start = recipe_of(simple()).build().phases[0].student.state_dict()
    start = {f"student of main: {key}": value for key, value in start.items()}
    moved = student_of(train(simple({"steps": 1, "optimizer": sgd, "clip_norm": 0.01}), tmp_path, "clipped"))
    norm = math.sqrt(sum(float((moved[key] - start[key]).square().sum()) for key in start))
    assert norm == pytest.approx(0.01, rel=1e-4)


def test_the_moving_average_is_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decay, seen = 0.5, []
    update = TrainLoop.update

    def record(loop: TrainLoop, batch: Any) -> None:
        update(loop, batch)
        seen.append(copy.deepcopy(loop.context.models.student.state_dict()))

    monkeypatch.setattr(TrainLoop, "update", record)
    run = train(simple({"epochs": 2, "ema": decay}), tmp_path)
    average = seen[0]
    for state in seen[1:]:
        average = {key: decay * average[key] + (1 - decay) * state[key] for key in average}
    kept = student_of(run)
    for key, value in average.items():
        torch.testing.assert_close(kept[f"student of main: {key}"], value)
    loss = run.records("validation")[-1]["metrics"]["loss"]
    val = run.program.data.split("val")
    batch = val.__getitems__(list(range(len(val))))
    logits = run.program.phases[0].student.eval()(batch).logits
    assert torch.nn.functional.cross_entropy(logits, batch["label"]).item() == pytest.approx(loss, rel=1e-5)


WILD = {"optimizer": {"kind": "sgd", "lr": 3.0}, "epochs": 6}


def test_the_best_epoch_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, end_epoch = [], TrainLoop.end_epoch

    def record(loop: TrainLoop) -> None:
        states.append(copy.deepcopy(loop.context.models.student.state_dict()))
        end_epoch(loop)

    monkeypatch.setattr(TrainLoop, "end_epoch", record)
    run = train(simple(WILD | {"monitor": {"metric": "loss", "mode": "min"}}), tmp_path)
    losses = [record["metrics"]["loss"] for record in run.records("validation")]
    best = losses.index(min(losses))
    assert best < len(losses) - 1
    assert run.records("stage_end")[0]["best_epoch"] == best
    kept = student_of(run)
    assert all(torch.equal(kept[f"student of main: {key}"], value) for key, value in states[best].items())


def test_early_stopping(tmp_path: Path) -> None:
    stage = WILD | {"epochs": 12, "patience": 2, "monitor": {"metric": "loss", "mode": "min"}}
    run = train(simple(stage), tmp_path)
    (end,) = run.records("stage_end")
    assert end["epochs"] < 12
    assert end["epochs"] == end["best_epoch"] + 1 + 2


def test_a_monitored_split_other_than_val(tmp_path: Path) -> None:
    run = train(simple({"monitor": {"metric": "accuracy", "mode": "max", "split": "test"}}), tmp_path)
    best = max(record["metrics"]["accuracy"] for record in run.records("validation"))
    assert run.results["test"]["test"]["student"]["accuracy"] == pytest.approx(best)


OPTIMIZERS = ["adam", "adamw", "sgd", "rmsprop", "adagrad", "radam", "nadam", "adadelta", "adamax", "asgd", "rprop"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_of_torch_move_the_student(tmp_path: Path, kind: str) -> None:
    run = train(simple({"steps": 1, "optimizer": {"kind": kind, "lr": 0.01}}), tmp_path)
    start = recipe_of(simple()).build().phases[0].student.state_dict()
    assert not torch.equal(
        run.program.phases[0].student.state_dict()["network.fc1.weight"], start["network.fc1.weight"]
    )


def rates(tmp_path: Path, scheduler: Any, **stage: Any) -> list[float]:
    """Return the learning rate after every step."""
    sgd = {"optimizer": {"kind": "sgd", "lr": 0.1}}
    raw = simple({"scheduler": scheduler, "epochs": 2, **sgd, **stage})
    raw["trainer"]["log_every"] = 1
    return [record["lr"] for record in train(raw, tmp_path).records("train")]


def test_a_cosine_without_length_ends_with_the_stage(tmp_path: Path) -> None:
    expected = [0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(1, 7)]
    assert rates(tmp_path, "cosine_annealing_lr") == pytest.approx(expected, abs=1e-9)


def test_schedulers_step_once_an_optimizer_step(tmp_path: Path) -> None:
    step_lr = {"kind": "step_lr", "step_size": 2, "gamma": 0.5}
    assert rates(tmp_path, step_lr, accumulate=2, epochs=3) == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025, 0.0125])


def test_bf16_trains_close_to_float32(tmp_path: Path) -> None:
    """N7: a whole run under bf16."""

    def precision(kind: str) -> dict[str, Any]:
        raw = full(baselines={})
        raw["student"]["dropout"] = 0.0
        raw["trainer"]["mixed_precision"] = kind
        return raw

    half, whole = train(precision("bf16"), tmp_path, "half"), train(precision("no"), tmp_path, "whole")
    for a, b in zip(half.records("train"), whole.records("train"), strict=True):
        assert a["losses"]["total"] == pytest.approx(b["losses"]["total"], rel=0.02)
    assert same_weights(half.weights(), whole.weights())
    assert all(value.dtype != torch.bfloat16 for value in half.weights().values())


def test_fp16_on_a_cpu_is_a_mistake_of_the_config(tmp_path: Path) -> None:
    """F5: a precision that the machine does not have."""
    raw = simple()
    raw["trainer"]["mixed_precision"] = "fp16"
    with pytest.raises(ConfigError, match=r"trainer.mixed_precision: 'fp16' can't be used here"):
        train(raw, tmp_path)
    raw["trainer"]["mixed_precision"] = "no"
    train(raw, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_a_mistake_of_the_config(tmp_path: Path) -> None:
    """F5: a GPU that is not there."""
    raw = simple()
    raw["trainer"]["device"] = "cuda"
    with pytest.raises(ConfigError, match="no usable GPU; use auto or cpu"):
        train(raw, tmp_path)


def test_two_engines_in_one_process_share_nothing(tmp_path: Path) -> None:
    """P4: a run of another precision and seed, begun and ended in between, changes nothing."""
    alone = train(simple(), tmp_path, "alone")
    other = simple({"epochs": 1}, seed=9)
    other["trainer"] |= {"mixed_precision": "bf16", "deterministic": False}

    class Interrupting:
        done = False

    update = TrainLoop.update

    def update_and_train_another(loop: TrainLoop, batch: Any) -> None:
        update(loop, batch)
        if not Interrupting.done:
            Interrupting.done = True
            state = torch.get_rng_state()
            train(other, tmp_path, "other")
            torch.set_rng_state(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainLoop, "update", update_and_train_another)
        nested = train(simple(), tmp_path, "nested")
    assert Interrupting.done
    assert same_weights(nested.weights(), alone.weights()) == []
    assert nested.records() == alone.records()


def test_same_seed_same_run_other_seed_other_run(tmp_path: Path) -> None:
    """R7: bit for bit."""
    first, second = (train(full(), tmp_path, name) for name in ("first", "second"))
    assert same_weights(first.weights(), second.weights()) == []
    assert first.records() == second.records()
    other = train(full(seed=4), tmp_path, "other")
    assert len(same_weights(first.weights(), other.weights())) > 20


def test_trackers_and_progress_change_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R7: bit for bit."""
    raw = full(baselines={})
    silent = train(raw, tmp_path, "silent")
    assert capsys.readouterr().err == ""
    raw["trainer"]["trackers"] = ["tensorboard"]
    loud = train(raw, tmp_path, "loud", quiet=False)
    assert same_weights(silent.weights(), loud.weights()) == []
    assert silent.records() == loud.records()
    assert list(loud.run.path.rglob("events.out.tfevents.*"))
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 6
    assert printed[0].startswith("main/cotrain 1/2  accuracy 0.")
    assert all(len(line) < 80 for line in printed)


def test_a_stage_trains_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    raw = full(baselines={})
    raw["stages"] = [stage | {"epochs": 1} for stage in raw["stages"]]
    names = {"cotrain": ("student", "pool: teachers"), "specialise": ("pool: masks",), "distill": ("student", "router")}
    before = None
    for count, (stage, parts) in enumerate(names.items(), 1):
        shorter = raw | {"stages": raw["stages"][:count]}
        shorter["stages"][-1].pop("monitor", None)
        after = train(shorter, tmp_path, stage).weights()
        if before is None:
            from .tiny import weights_of

            before = weights_of(recipe_of(shorter).build())
        changed = {key for key in same_weights(before, after) if key in before}
        assert changed, stage
        assert all(key.startswith(parts) for key in changed), (stage, changed)
        trained = {key.split(":")[0] + ":" + key.split(":")[1][:9] for key in changed}
        assert len(trained) >= len(parts), (stage, trained)
        before = after


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"trains": ["student"], "objectives": [{"kind": "kd", "teacher": "right"}], "cache": "memory"}, None),
        (
            {
                "trains": ["student"],
                "objectives": ["kd"],
                "cache": "memory",
                "transforms": [{"kind": "random_shift", "fields": ["image"]}],
            },
            "asks for cached teachers, but inputs change from epoch to epoch: RandomShift can.t be replayed; use",
        ),
        (
            {"trains": ["student", "teachers"], "objectives": ["mutual_kd"], "cache": "memory"},
            "asks for cached teachers, but teachers or masks train in this stage",
        ),
    ],
)
def test_a_cache_that_would_be_wrong_is_refused(tmp_path: Path, stage: dict[str, Any], message: str | None) -> None:
    teachers = {"right": MLP | {"inputs": ["right"], "in_features": 10}}
    raw = simple({"epochs": 1, **stage}, teachers=teachers)
    if message is None:
        train(raw, tmp_path)
    else:
        with pytest.raises(ConfigError, match=message):
            train(raw, tmp_path)


def test_augmented_data_is_not_cached(tmp_path: Path) -> None:
    teachers = {"right": MLP | {"inputs": ["right"], "in_features": 10}}
    data = {"kind": "tiny", "augmented": True, "labels": 20}
    raw = simple({"objectives": ["kd"], "cache": "memory"}, teachers=teachers, data=data)
    with pytest.raises(ConfigError, match="asks for cached teachers, but inputs change from epoch to epoch"):
        train(raw, tmp_path)


def test_a_monitored_objective_is_measured_on_the_moving_average(tmp_path: Path) -> None:
    monitor = {"metric": "cross_entropy", "mode": "min"}
    run = train(simple({"ema": 0.9, "optimizer": {"kind": "sgd", "lr": 0.5}, "monitor": monitor}), tmp_path)
    for record in run.records("validation"):
        assert record["metrics"]["cross_entropy"] == pytest.approx(record["metrics"]["loss"], rel=1e-5)


def test_workers_change_no_number(tmp_path: Path) -> None:
    """R4: 0 and 2 loader processes."""

    def workers(count: int) -> dict[str, Any]:
        return simple({"epochs": 1}, data={"kind": "tiny", "batch_size": 16, "num_workers": count})

    none, two = train(workers(0), tmp_path, "none"), train(workers(2), tmp_path, "two")
    assert same_weights(none.weights(), two.weights()) == []
    assert none.records() == two.records()


SMALL = {
    "a last batch of one row": full(data={"kind": "tiny", "batch_size": 16, "rows": 33}),
    "fewer rows than a batch": full(data={"kind": "tiny", "batch_size": 128, "rows": 5}),
    "no label in most batches": full(data={"kind": "tiny", "batch_size": 8, "labels": 4}),
    "every teacher chosen": full(router={"gate": "instance", "selection": {"kind": "top_k", "k": 3}}),
    "one teacher": full(teachers={"right": {**full()["teachers"]["right"]}}),
}


@pytest.mark.parametrize("raw", SMALL.values(), ids=SMALL)
def test_degenerate_runs_stay_finite(tmp_path: Path, raw: dict[str, Any]) -> None:
    """N3: whole runs on degenerate data."""
    raw["stages"] = [stage | {"epochs": 1} for stage in raw["stages"]]
    run = train(raw, tmp_path)
    assert all(bool(torch.isfinite(value).all()) for value in run.weights().values())
    assert len(run.records("stage_end")) == 4


def test_p3_memory_open_files_and_hooks_stay_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: over 2,000 steps with live teachers that are tapped; no hook is left behind."""
    import os

    import psutil

    from ..builders import hook_count

    seen: list[tuple[int, int]] = []
    run_batch = TrainLoop.run_batch

    def record(loop: TrainLoop, batch: Any) -> bool:
        stepped = run_batch(loop, batch)
        if loop.state.step % 100 == 0:
            seen.append((psutil.Process().memory_info().rss, len(os.listdir("/proc/self/fd"))))
        return stepped

    monkeypatch.setattr(TrainLoop, "run_batch", record)
    tapped = MLP | {"inputs": ["right"], "in_features": 10, "taps": ["fc1"]}
    stage = {
        "epochs": 8,
        "cache": "off",
        "objectives": [{"kind": "fitnets", "student_tap": "fc1", "teacher_tap": "fc1"}],
    }
    raw = simple(stage, student=MLP | {"taps": ["fc1"]}, teachers={"right": tapped})
    raw["data"] = {"kind": "tiny", "batch_size": 4, "rows": 1000}
    raw["trainer"] |= {"checkpoint_every": None, "keep": 1, "log_every": 20}
    run = train(raw, tmp_path)
    assert run.records("stage_end")[0]["steps"] == 2000
    assert len(seen) == 20
    assert seen[-1][0] - seen[4][0] < 8 * 2**20
    assert seen[-1][1] == seen[4][1]
    assert hook_count(run.program.pool) == hook_count(run.program.phases[0].student) == 0
