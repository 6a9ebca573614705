"""DHO on little data: heads that learn from labels and from a teacher, mixed by validation, kept in the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.program import Program
from moekd.recipe import Recipe
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

SMALL = [
    "data.max_train=96",
    "data.batch_size=32",
    "data.labels=24",
    "data.target=group",
    "stages.pretrain.epochs=1",
    "stages.tune_teacher.epochs=1",
    "stages.distill.epochs=2",
    "student.encoder.channels=[4, 8]",
    "teachers.clip.tower.channels=[4, 8]",
    "trainer.device=cpu",
]


def build(*overrides: str) -> Program:
    recipe = Recipe.load("methods/dho", [*SMALL, *overrides])
    return Recipe(recipe.config.model_copy(update={"baselines": {}})).build()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    """Return a run of the shipped config on little data."""
    program, runs = build(), tmp_path_factory.mktemp("runs")
    Trainer(program, RunFolder(runs, "run"), quiet=True).fit()
    return program, runs / "run"


def test_the_mixture_of_the_best_epoch_is_kept(trained: tuple[Program, Path]) -> None:
    program, run = trained
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    chosen = {r["epoch"]: (r["alpha"], r["temperature"]) for r in records if r["type"] == "head_mix"}
    best = next(r["best_epoch"] for r in records if r["type"] == "stage_end" and r["stage"] == "distill")
    network = program.phases[0].student.network
    assert (float(network.alpha), float(network.temperature)) == pytest.approx(chosen[best])
    losses = next(r["losses"] for r in records if r["type"] == "train" and r["stage"] == "distill")
    assert {"cross_entropy/student", "kd/labelled", "kd/unlabelled"} <= set(losses)


def test_half_of_each_batch_has_labels_and_the_dry_run_counts_them() -> None:
    program = build()
    pairing = program.data.split("train").pairing
    assert pairing is not None
    first = pairing.order(32, np.random.default_rng(0))[:32]
    assert np.isin(first, pairing.labelled).sum() == 16
    rows = {row["stage"]: row for row in dry_run(program)}
    assert rows["distill"]["steps"] == 2 * -(-72 // 16)


def test_labels_and_teacher_train_heads_of_their_own() -> None:
    program = build()
    network = program.phases[0].student.network
    batch = program.data.split("train").__getitems__(list(range(32)))
    said = program.phases[0].student(batch)
    grads = torch.autograd.grad(said.heads["labels"].sum(), list(network.heads.parameters()), allow_unused=True)
    assert [g is not None for g in grads] == [True, True, False, False]


def test_a_student_without_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no heads to mix"):
        dry_run(build("student={kind: small_cnn, inputs: [image]}"))
