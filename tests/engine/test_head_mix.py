"""DHO on little data: heads that learn from labels and from a teacher, mixed by validation, kept in the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moekd.data.pairing import Pairing
from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.objectives import reduce
from moekd.program import Program
from moekd.recipe import Recipe
from moekd.stages.trainable import train_only
from moekd.step import Step
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
    pairing = program.data.split("train").batching
    assert isinstance(pairing, Pairing)
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


def test_no_loss_reaches_the_other_head_or_the_teacher() -> None:
    """DHO's first invariant, for the objectives of the shipped config."""
    program = build()
    models, stage = program.models(program.phases[0]), program.phases[0].stages[-1]
    train_only(models, stage.settings.trains, torch.nn.ModuleList())
    batch = program.data.split("train").__getitems__(list(range(32)))
    assert batch["labelled"].any()
    assert not batch["labelled"].all()
    heads, counted = models.student.network.heads, {}
    for weighted in stage.settings.objectives:
        for name, loss in weighted.terms(Step(batch, models)).items():
            models.student.zero_grad(set_to_none=True)
            models.pool.zero_grad(set_to_none=True)
            loss.mean().backward(retain_graph=True)
            counted[name] = {h for h in heads if heads[h].weight.grad is not None and heads[h].weight.grad.any()}
            assert all(p.grad is None for p in models.pool.parameters())
            assert any(p.grad is not None and p.grad.any() for p in models.student.network.encoder.parameters())
    assert {name.split("/")[0]: found for name, found in counted.items()} == {
        "cross_entropy": {"labels"},
        "kd": {"teacher"},
    }
    assert len(counted) == 3


def test_the_weighted_loss_is_that_of_the_publication() -> None:
    """Half the cross-entropy of labelled rows, half the sum of both means of the distillation, T = 2."""
    program = build()
    models, stage = program.models(program.phases[0]), program.phases[0].stages[-1]
    models.student.eval()
    batch = program.data.split("train").__getitems__(list(range(32)))
    step, known = Step(batch, models), batch["labelled"]
    losses = [w.weight * reduce(v) for w in stage.settings.objectives for v in w.objective(step).values()]
    heads, target = step.student.heads, step.signals("clip").logits
    ce = torch.nn.functional.cross_entropy(heads["labels"][known], batch["label"][known])
    kd = [
        4
        * torch.nn.functional.kl_div(
            (heads["teacher"][rows] / 2).log_softmax(1), (target[rows] / 2).softmax(1), reduction="batchmean"
        )
        for rows in (known, ~known)
    ]
    torch.testing.assert_close(sum(losses), 0.5 * ce + 0.5 * (kd[0] + kd[1]), rtol=1e-4, atol=1e-5)


START = ["teachers.clip.width=8", "student.encoder.channels=[4, 8]", "stages.distill.start_from=clip"]


def test_heads_start_from_the_class_vectors_of_the_teacher(tmp_path: Path) -> None:
    program = build(*START, "student.cosine=true", "stages.distill.epochs=1")
    network, clip = program.phases[0].student.network, program.pool.teacher("clip").network
    started: list[torch.Tensor] = []
    stage = program.phases[0].stages[-1]
    make = stage.make_loop

    def look(*arguments):  # type: ignore[no-untyped-def]
        started.extend(parameter.detach().clone() for parameter in network.heads.parameters())
        return make(*arguments)

    stage.make_loop = look  # type: ignore[method-assign]
    Trainer(program, RunFolder(tmp_path, "run"), quiet=True).fit()
    weights, biases = started[::2], started[1::2]
    assert all(torch.equal(weight, clip.classifier.vectors) for weight in weights)
    assert clip.classifier.vectors.any()
    assert not any(bias.any() for bias in biases)
    assert not torch.equal(network.heads["teacher"].weight, clip.classifier.vectors), "they learn from there"


def test_a_start_that_can_not_be_is_told_before_anything_trains() -> None:
    with pytest.raises(ConfigError, match=r"start_from 'clip': .*reads 8 features.*width of the class vectors"):
        dry_run(build("stages.distill.start_from=clip"))
    with pytest.raises(ConfigError, match="no head 'techer'; did you mean 'teacher'"):
        dry_run(build(*START, "stages.distill.start_heads=[techer]"))
    with pytest.raises(ConfigError, match="no teacher 'klip'; did you mean 'clip'"):
        dry_run(build(*START, "stages.distill.start_from=klip"))
    with pytest.raises(ConfigError, match=r"start_heads \['teacher'\] needs start_from"):
        build("stages.distill.start_heads=[teacher]")
    with pytest.raises(ConfigError, match="teacher 'clip' names no classes"):
        dry_run(build(*START, "teachers.clip.class_vectors=null", "stages.tune_teacher.enabled=false"))


def test_a_student_without_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no heads to mix"):
        dry_run(build("student={kind: small_cnn, inputs: [image]}"))
