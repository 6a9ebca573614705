"""Starting with the stages of another run, and refusing those of a run that differs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moekd.errors import CheckpointError
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

from .engine.conftest import _one_thread, _tiny_kinds  # noqa: F401
from .engine.tiny import MLP, Finished, full, recipe_of, same_weights, train

CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "data": (lambda c: c["data"].update(batch_size=12), "data.batch_size: 16 in the checkpoint, 12 now"),
    "content": (lambda c: c["data"].update(seed=5), "dataset_fingerprint: "),
    "student": (lambda c: c["student"].update(hidden=7), "student.hidden: 8 in the checkpoint, 7 now"),
    "teacher": (lambda c: c["teachers"]["right"].update(hidden=[5]), "teachers.right.hidden[0]: 12 in the che"),
    "weights of a teacher": (lambda c: c.update(seed=4), "teacher_fingerprints.right: "),
    "one teacher more": (lambda c: c["teachers"].update(more=MLP), "teachers.more: (absent) in the checkpoint"),
    "seed": (lambda c: c.update(seed=4), "seed: 3 in the checkpoint, 4 now"),
    "loss": (lambda c: c["stages"][0].update(clip_norm=1.0), "stages[0].clip_norm: 5.0 in the checkpoint, 1.0 now"),
    "name of a stage": (lambda c: c["stages"][0].update(name="first"), "stages[0].name: 'cotrain' in the checkpoint"),
    "precision": (
        lambda c: c["trainer"].update(mixed_precision="bf16"),
        "trainer.mixed_precision: 'no' in the checkpoint, 'bf16' now",
    ),
    "threads": (lambda c: c["trainer"].update(threads=2), "trainer.threads: 1 in the checkpoint, 2 now"),
}


def config(stages: int, **changes: Any) -> dict[str, Any]:
    """Return the config of a run of the first stages, an epoch each, without baselines."""
    raw = full(baselines={}, **changes)
    raw["stages"] = [stage | {"epochs": 1} for stage in raw["stages"][:stages]]
    return raw


@pytest.fixture(scope="module")
def cotrained(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:  # noqa: F811
    """Return a finished run of the first stage, without masks and router."""
    raw = config(1)
    del raw["masks"], raw["router"]
    return train(raw, Path(tmp_path_factory.mktemp("cotrained")))


def go_on(raw: dict[str, Any], start: Path, runs: Path, name: str = "on") -> Finished:
    """Run a config from the end of another run."""
    program = recipe_of(raw).build()
    run = RunFolder(runs, name, resume=True)
    trainer = Trainer(program, run, quiet=True)
    return Finished(program, run, trainer, trainer.fit(start=start))


def refusal(raw: dict[str, Any], start: Path, runs: Path) -> str:
    """Return why a run can't start there."""
    with pytest.raises(CheckpointError) as caught:
        go_on(raw, start, runs)
    assert "--override" not in str(caught.value)
    assert "--resume" not in str(caught.value)
    return str(caught.value)


def test_what_follows_is_the_same_to_the_bit(cotrained: Finished, tmp_path: Path) -> None:
    alone = train(config(2), tmp_path, "alone")
    first = go_on(config(2), cotrained.run.path, tmp_path)
    assert same_weights(first.weights(), alone.weights()) == []
    assert first.records() == alone.records()
    # A second link of the chain, with a router that the first one did not have.
    whole = train(config(3), tmp_path, "whole")
    assert first.program.phases[0].router is not None
    second = go_on(config(3), first.run.path, tmp_path, "chain")
    assert same_weights(second.weights(), whole.weights()) == []
    assert second.records() == whole.records()


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_differs_is_refused(change: str, cotrained: Finished, tmp_path: Path) -> None:
    raw = config(2)
    edit, said = CHANGES[change]
    edit(raw)
    message = refusal(raw, cotrained.run.path, tmp_path)
    assert message.splitlines()[0] == f"{cotrained.run.path} can't be started from:"
    assert said in message


def test_all_differences_are_named(cotrained: Finished, tmp_path: Path) -> None:
    raw = config(2)
    for name in ("data", "student", "loss", "precision"):
        CHANGES[name][0](raw)
    message = refusal(raw, cotrained.run.path, tmp_path)
    assert all(CHANGES[name][1] in message for name in ("data", "student", "loss", "precision"))


def test_what_the_finished_stages_did_not_use_may_differ(cotrained: Finished, tmp_path: Path) -> None:
    raw = config(2, title="Another title", router={"gate": "uniform", "selection": "dense"})
    raw["masks"]["heads"] = 3
    raw["masks"]["hidden_factor"] = 3
    raw["trainer"] |= {"log_every": 1, "keep": 1}
    assert go_on(raw, cotrained.run.path, tmp_path).results["stages"][0]["stage"] == "cotrain"


def test_masks_and_routers_that_were_trained_must_agree(cotrained: Finished, tmp_path: Path) -> None:
    masked = go_on(config(2), cotrained.run.path, tmp_path, "masked")
    raw = config(3)
    raw["masks"]["heads"] = 3
    raw["router"]["selection"] = "dense"
    message = refusal(raw, masked.run.path, tmp_path)
    assert "masks.heads: 1 in the checkpoint, 3 now" in message
    assert "router.selection.kind: 'top_k' in the checkpoint, 'dense' now" in message


def test_no_stage_would_be_left(cotrained: Finished, tmp_path: Path) -> None:
    assert "['cotrain'] have to be the first ones" in refusal(config(1), cotrained.run.path, tmp_path)


def test_folders_that_are_no_finished_run(cotrained: Finished, tmp_path: Path) -> None:
    assert "no checkpoint to start from" in refusal(config(2), tmp_path / "nowhere", tmp_path / "runs")
    unfinished = train({**config(2), "trainer": {**config(2)["trainer"], "keep": 100}}, tmp_path, "long").run.path
    newest = sorted(path for path in (unfinished / "checkpoints").iterdir() if path.is_dir())[-1]
    shutil.rmtree(newest)
    message = refusal(config(3), unfinished, tmp_path / "runs")
    assert "it is not finished, 1 of 2 stages are done" in message


def test_a_damaged_checkpoint_is_named(cotrained: Finished, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(cotrained.run.path, copied)
    newest = sorted(path for path in (copied / "checkpoints").iterdir() if path.is_dir())[-1]
    weights = newest / "models.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    message = refusal(config(2), copied, tmp_path / "runs")
    assert f"{newest.name}: " in message
    assert "models.safetensors" in message


def test_records_that_are_lost(cotrained: Finished, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(cotrained.run.path, copied)
    (copied / "metrics.jsonl").write_text("")
    assert "metrics.jsonl has 0 bytes, its checkpoint expects" in refusal(config(2), copied, tmp_path / "runs")
    (copied / "metrics.jsonl").unlink()
    assert "metrics.jsonl has 0 bytes" in refusal(config(2), copied, tmp_path / "runs")


def test_a_run_with_baselines_is_refused(tmp_path: Path) -> None:
    raw = config(1)
    del raw["masks"], raw["router"]
    with_baseline = train(raw | {"baselines": full()["baselines"]}, tmp_path, "baselines")
    assert "it is a run with baselines" in refusal(config(2), with_baseline.run.path, tmp_path)


def test_a_baseline_whose_student_was_not_kept(cotrained: Finished, tmp_path: Path) -> None:
    start = train(config(2), tmp_path, "two").run.path
    raw = copy.deepcopy(config(3))
    raw["baselines"] = {"early": full()["baselines"]["alone"] | {"after": "cotrain"}}
    message = refusal(raw, start, tmp_path)
    assert "baseline 'early' starts after stage 'cotrain'" in message
    assert "it can start after 'specialise'" in message
