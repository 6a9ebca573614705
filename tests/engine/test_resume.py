"""A run that was stopped and goes on ends exactly as one that was never stopped."""

from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from moekd.checkpoint import find_latest
from moekd.errors import CheckpointError, ConfigError, DataError
from moekd.stages.train import TrainLoop

from .tiny import Finished, PowerCutError, cut_after, full, same_weights, simple, train

#: Optimizer steps: stage cotrain 0-6, specialise 6-12, distill 12-18, baseline 18-21; three steps an epoch, a
#: checkpoint every second step and at the end of every epoch and stage.
STOPS = {
    "before the first step": 0,
    "before the first checkpoint": 1,
    "in an epoch": 2,
    "after steps that no checkpoint has": 5,
    "at a stage boundary": 6,
    "at an epoch boundary of the masks": 9,
    "with a moving average and a best epoch": 17,
    "between the recipe and its baseline": 18,
    "in a baseline": 20,
}


def without_times(results: Any) -> Any:
    """Return results without seconds and memory, as they are written."""
    if isinstance(results, dict):
        skipped = ("seconds", "train_seconds", "peak_memory_mb")
        return {key: without_times(value) for key, value in results.items() if key not in skipped}
    return [without_times(item) for item in results] if isinstance(results, list) else results


def assert_same_run(run: Finished, expected: Finished) -> None:
    """Weights bit for bit, records and results but for times."""
    assert same_weights(run.weights(), expected.weights()) == []
    assert run.records() == expected.records()
    written = [without_times(json.loads(finished.run.results.read_text())) for finished in (run, expected)]
    assert written[0] == written[1]


def stopped(raw: dict[str, Any], runs: Path, steps: int) -> None:
    """Leave the folder of a run that died after some steps."""
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, steps)
        with pytest.raises(PowerCutError):
            train(raw, runs)


@pytest.mark.parametrize("steps", STOPS.values(), ids=STOPS)
def test_resume_is_exact(undisturbed: Finished, tmp_path: Path, steps: int) -> None:
    """R1: weights, log and results of a stopped run are those of one that was never stopped."""
    stopped(full(), tmp_path, steps)
    assert_same_run(train(full(), tmp_path, resume="auto"), undisturbed)


@pytest.mark.parametrize("batches", [3, 5, 7])
def test_r1_in_the_middle_of_accumulation(tmp_path: Path, batches: int) -> None:
    """R1: checkpoints are at optimizer steps only, so gradients that were added up since are computed again."""
    raw = simple({"accumulate": 2, "epochs": 3, "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}})
    raw["trainer"] |= {"checkpoint_every": 1}
    whole, run_batch, done = train(raw, tmp_path / "whole"), TrainLoop.run_batch, [0]

    def run_or_die(loop: TrainLoop, batch: Any) -> bool:
        stepped = run_batch(loop, batch)
        done[0] += 1
        if done[0] == batches:
            assert (loop.state.batch % 2 == 1) is not stepped or loop.state.batch == 3
            raise PowerCutError
        return stepped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainLoop, "run_batch", run_or_die)
        with pytest.raises(PowerCutError):
            train(raw, tmp_path / "cut")
    assert_same_run(train(raw, tmp_path / "cut", resume="auto"), whole)


def test_r4_with_loader_processes_and_with_cached_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: stopped and resumed with 2 loader processes and stored signals: the rows and losses of a plain run."""
    teachers = {"right": {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12]}}
    read: list[list[int]] = []
    run_batch = TrainLoop.run_batch

    def record(loop: TrainLoop, batch: dict[str, Any]) -> bool:
        read.append(batch["id"].tolist())
        return run_batch(loop, batch)

    def run(workers: int, cache: str) -> dict[str, Any]:
        data = {"kind": "tiny", "batch_size": 16, "num_workers": workers}
        return simple({"objectives": ["cross_entropy", "kd"], "cache": cache}, teachers=teachers, data=data) | {
            "cache": {"folder": str(tmp_path / "signals")}
        }

    monkeypatch.setattr(TrainLoop, "run_batch", record)
    plain = train(run(0, "off"), tmp_path / "plain")
    rows, read[:] = list(read), []
    stopped(run(2, "disk"), tmp_path / "other", 3)
    del read[3:]  # the fourth batch was read, and its step did not happen
    other = train(run(2, "disk"), tmp_path / "other", resume="auto")
    assert read == rows
    for one, two in zip(plain.records("train"), other.records("train"), strict=True):
        assert one["losses"] == pytest.approx(two["losses"], rel=1e-5)


def test_each_sample_is_read_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R8: over a resume too; every epoch has its own order."""
    read: dict[tuple[str, str, int, int], list[int]] = {}
    run_batch = TrainLoop.run_batch

    def record(loop: TrainLoop, batch: dict[str, Any]) -> bool:
        key = (loop.context.phase, loop.settings.name, loop.state.epoch, loop.state.batch)
        assert read.setdefault(key, batch["id"].tolist()) == batch["id"].tolist(), "a batch that is read again"
        return run_batch(loop, batch)

    monkeypatch.setattr(TrainLoop, "run_batch", record)
    stopped(full(), tmp_path, 8)
    before = len(read)
    train(full(), tmp_path, resume="auto")
    assert before == 9
    for stage in ("cotrain", "specialise", "distill"):
        for epoch in range(2):
            ids = [i for key, batch in read.items() if key[1:3] == (stage, epoch) for i in batch]
            assert sorted(ids) == list(range(40)), (stage, epoch)
    orders = [batch for key, batch in read.items() if key[3] == 0]
    assert len({tuple(order) for order in orders}) == len(orders), "every epoch has an order of its own"


def test_a_run_that_is_stopped_again_and_again(undisturbed: Finished, tmp_path: Path) -> None:
    """R2: at random steps, four times."""
    rng = random.Random(5)
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 3)
        with pytest.raises(PowerCutError):
            train(full(), tmp_path)
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            cut_after(patch, rng.randint(3, 5))
            with pytest.raises(PowerCutError):
                train(full(), tmp_path, resume="auto")
    assert_same_run(train(full(), tmp_path, resume="auto"), undisturbed)


def test_resuming_a_finished_run_changes_nothing(undisturbed: Finished, tmp_path: Path) -> None:
    """R1: at the last step."""
    shutil.copytree(undisturbed.run.path, tmp_path / "run")
    assert_same_run(train(full(), tmp_path, resume="auto"), undisturbed)


def test_resume_from_a_named_checkpoint(undisturbed: Finished, tmp_path: Path) -> None:
    """R1: `--resume PATH`, also from one that is not the newest."""
    shutil.copytree(undisturbed.run.path, tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("0*"))
    assert_same_run(train(full(), tmp_path, resume=checkpoints[5]), undisturbed)
    newest, skipped = find_latest(tmp_path / "run" / "checkpoints")
    assert newest not in checkpoints
    assert skipped == []


LATER = full(
    baselines={
        "later": {
            "after": "cotrain",
            "stacking": "cumulative",
            "router": {"gate": "instance", "selection": "dense", "combine": "loss"},
            "stages": [full()["stages"][2] | {"name": "first", "epochs": 1}, full()["stages"][2] | {"epochs": 1}],
        }
    }
)


def test_resume_is_exact_in_a_baseline_that_starts_in_between(tmp_path: Path) -> None:
    """The student of the baseline starts as the main one was after `cotrain`; steps 18-21 and 21-24 are its stages."""
    starts: list[dict[str, Any]] = []
    run_loop = TrainLoop.run

    def record(loop: TrainLoop) -> None:
        if loop.settings.name in ("specialise", "first"):
            starts.append({key: value.clone() for key, value in loop.context.models.student.state_dict().items()})
        run_loop(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainLoop, "run", record)
        whole = train(LATER, tmp_path / "whole")
    assert len(starts) == 2
    assert same_weights(starts[0], starts[1]) == []
    for steps in (20, 21):
        stopped(LATER, tmp_path / str(steps), steps)
        assert_same_run(train(LATER, tmp_path / str(steps), resume="auto"), whole)


ENDINGS = {
    "early stopping": {"epochs": 6, "patience": 1, "monitor": {"metric": "accuracy", "mode": "max"}},
    "accumulation": {"accumulate": 2, "epochs": 3},
    "steps": {"steps": 7},
    "a schedule and noise": {
        "epochs": 2,
        "scheduler": "one_cycle_lr",
        "transforms": [{"kind": "random_shift", "fields": ["image"]}],
    },
}


@pytest.mark.parametrize("stage", ENDINGS.values(), ids=ENDINGS)
def test_resume_is_exact_for_every_kind_of_stage(tmp_path: Path, stage: dict[str, Any]) -> None:
    """R1: early stopping, accumulation, a number of steps, schedules with noise."""
    if stage.get("scheduler") == "one_cycle_lr":
        stage = stage | {"scheduler": {"kind": "one_cycle_lr", "max_lr": 0.01}}
    raw = simple(stage)
    whole = train(raw, tmp_path / "whole")
    steps = whole.records("stage_end")[0]["steps"]
    for stop in (1, steps - 1):
        stopped(raw, tmp_path / str(stop), stop)
        assert_same_run(train(raw, tmp_path / str(stop), resume="auto"), whole)


def test_auto_without_a_checkpoint_says_so_and_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """R9: `auto` starts anew and says so."""
    caplog.set_level(logging.INFO)
    run = train(simple(), tmp_path, resume="auto")
    assert "no checkpoint to resume from: the run starts from the beginning" in caplog.text
    assert run.records("stage_end")


def test_a_named_checkpoint_must_exist(tmp_path: Path) -> None:
    """R9: a path without a checkpoint is an error."""
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*missing"):
        train(simple(), tmp_path, resume=tmp_path / "missing")


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    """R9: no silent restart in a folder that holds a run."""
    train(simple(), tmp_path)
    with pytest.raises(ConfigError, match=r"run 'run' exists already .* --resume"):
        train(simple(), tmp_path)


def changed(epochs: int = 2, **stage: Any) -> dict[str, Any]:
    """Return a config of one stage."""
    return simple({"epochs": epochs, **stage})


def test_another_config_is_refused_by_the_name_of_the_key(tmp_path: Path) -> None:
    """R6: unless `--override` names it."""
    stopped(changed(), tmp_path, 4)
    with pytest.raises(CheckpointError) as error:
        train(changed(3, clip_norm=1.0), tmp_path, resume="auto")
    assert "stages[0].epochs: 2 in the checkpoint, 3 now" in str(error.value)
    assert "stages[0].clip_norm: (absent) in the checkpoint, 1.0 now" in str(error.value)
    with pytest.raises(CheckpointError, match=r"stages\[0\].clip_norm"):
        train(changed(3, clip_norm=1.0), tmp_path, resume="auto", allow=["stages[0].epochs"])
    longer = train(changed(3), tmp_path, resume="auto", allow=["stages[0].epochs"])
    assert longer.records("stage_end")[0]["epochs"] == 3
    assert longer.run.config.read_text().count("epochs: 3") == 1


def test_an_allowed_learning_rate_takes_effect(tmp_path: Path) -> None:
    def with_rate(rate: float) -> dict[str, Any]:
        return changed(optimizer={"kind": "sgd", "lr": rate})

    stopped(with_rate(0.1), tmp_path, 4)
    run = train(with_rate(0.001), tmp_path, resume="auto", allow=["stages[0].optimizer.lr"])
    assert [record["lr"] for record in run.records("train")] == [0.1, 0.1, 0.1, 0.001]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"kind": "tiny", "batch_size": 16, "seed": 1}}, "data.seed"),
        ({"seed": 4}, "seed: 3 in the checkpoint, 4 now"),
    ],
)
def test_other_data_or_another_seed_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    """R6: other data, another seed."""
    stopped(changed(), tmp_path, 4)
    with pytest.raises(CheckpointError) as error:
        train(changed() | change, tmp_path, resume="auto")
    assert named in str(error.value)


def test_other_teachers_are_refused(tmp_path: Path) -> None:
    """R6: other weights or widths of a teacher, with what differs."""
    import safetensors.torch

    from .tiny import recipe_of

    def with_teacher(file: Path) -> dict[str, Any]:
        teacher = {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12], "weights": str(file)}
        return simple({"objectives": ["kd"]}, teachers={"right": teacher})

    file = tmp_path / "teacher.safetensors"
    raw = with_teacher(file)
    fresh = {key: value for key, value in raw["teachers"]["right"].items() if key != "weights"}
    network = recipe_of(raw | {"teachers": {"right": fresh}}).build().pool.teacher("right").network
    safetensors.torch.save_file(network.state_dict(), file)
    stopped(raw, tmp_path, 4)
    weights = {key: value + 1e-3 for key, value in network.state_dict().items()}
    safetensors.torch.save_file(weights, file)
    (described,) = json.loads((tmp_path / "run" / "teachers.json").read_text())
    assert (described["name"], described["classes"], described["weights"]) == ("right", 4, str(file))
    with pytest.raises(CheckpointError, match=r"teacher_fingerprints\.right") as error:
        train(raw, tmp_path, resume="auto")
    assert "the teachers differ in:\n  teachers.right.fingerprint: " in str(error.value)
    wider = {"right": raw["teachers"]["right"] | {"hidden": [12, 12], "weights": None}}
    with pytest.raises(CheckpointError) as error:
        train(raw | {"teachers": wider}, tmp_path, resume="auto")
    assert "teachers.right.parameters: " in str(error.value)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(
    undisturbed: Finished, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """C1: `auto` takes the newest valid one and says what it skipped and why."""
    stopped(full(), tmp_path, 8)
    newest, _ = find_latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    file = newest / ("manifest.json" if damage == "manifest" else "models.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage in ("truncate", "manifest") else content)
    caplog.set_level(logging.INFO)
    run = train(full(), tmp_path, resume="auto")
    assert f"skipped the checkpoint {newest.name}" in caplog.text
    assert {"flip": "sha256 mismatch", "delete": "models.safetensors", "truncate": "models.safetensors"}.get(
        damage, "manifest.json"
    ) in caplog.text
    assert_same_run(run, undisturbed)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """C6: while another process holds the folder."""
    stopped(simple(), tmp_path, 2)
    from moekd.tracking import RunFolder

    with RunFolder(tmp_path, "run", resume=True).lock(), pytest.raises(DataError, match=r"in use by process \d+"):
        train(simple(), tmp_path, resume="auto")
