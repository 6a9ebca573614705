"""The few-shot teacher of DHO on little data: entries from labelled rows, keys that learn or not, votes in the pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moekd.ablation.cost import expected_seconds
from moekd.config import load_config, parse_recipe
from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.program import Program
from moekd.recipe import Recipe
from moekd.stages import TipAdapterStage
from moekd.stages.class_vectors import labelled_embeddings
from moekd.stages.tip_adapter import votes_of
from moekd.stages.trainable import train_only
from moekd.step import Step
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

from .test_head_mix import SMALL
from .tiny import PowerCutError, cut_after, same_weights, weights_of

KEYS = "network.tip_adapter.keys"
FREE = {"name": "vote", "kind": "tip_adapter", "into": "clip"}
TUNED = FREE | {
    "trains": ["teachers.clip.tip_adapter"],
    "split": "labelled",
    "epochs": 2,
    "optimizer": {"kind": "adamw", "lr": 1e-2},
    "objectives": [{"kind": "cross_entropy", "on": "clip"}],
}


def build(stage: dict[str, Any] = TUNED, *overrides: str, entries: int | None = 24) -> Program:
    """Return DHO on little data with a stage of votes behind the tuning of its teacher."""
    raw, _ = load_config("methods/dho", [*SMALL, "stages.distill.epochs=1", "trainer.checkpoint_every=1", *overrides])
    raw.pop("paper")
    raw["baselines"] = {}
    if entries is not None:
        raw["teachers"]["clip"]["tip_adapter"] = {"entries": entries}
    raw["stages"].insert(2, stage)
    return Recipe(parse_recipe(raw, "small"), "small").build()


def fit(program: Program, runs: Path, **options: Any) -> dict[str, Tensor]:
    run = RunFolder(runs, "run", resume=options.get("resume") is not None)
    Trainer(program, run, quiet=True).fit(**options)
    return weights_of(program)


def records(runs: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (runs / "run" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["type"] == kind]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path, dict[str, Tensor]]:
    """Return a whole run with keys that learn."""
    program, runs = build(), tmp_path_factory.mktemp("runs")
    return program, runs, fit(program, runs)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path, dict[str, Tensor]]:
    """Return a whole run with keys that do not learn."""
    program, runs = build(FREE), tmp_path_factory.mktemp("runs")
    return program, runs, fit(program, runs)


def expected_entries(program: Program) -> tuple[Tensor, Tensor]:
    parts = list(
        labelled_embeddings(program.pool.teacher("clip"), program.data, "labelled", "image", torch.device("cpu"))
    )
    return torch.cat([rows for rows, _ in parts]), torch.cat([labels for _, labels in parts])


def test_entries_are_the_labelled_pictures(free: tuple[Program, Path, dict[str, Tensor]]) -> None:
    program, runs, _ = free
    votes, modality = votes_of(program.pool.teacher("clip"), "clip")
    rows, labels = expected_entries(program)
    assert modality == "image"
    assert len(rows) == 24
    torch.testing.assert_close(votes.keys.detach(), rows, rtol=1e-4, atol=1e-5)
    assert torch.equal(votes.values.argmax(dim=1), labels)
    assert torch.equal(votes.values.sum(dim=1), torch.ones(24))
    chosen = records(runs, "tip_adapter")
    assert [(r["stage"], r["model"]) for r in chosen] == [("vote", "clip")]
    assert (float(votes.alpha), float(votes.beta)) == pytest.approx((chosen[0]["alpha"], chosen[0]["beta"]))
    ends = {r["stage"]: r for r in records(runs, "stage_end")}
    assert ends["vote"]["steps"] == 0
    assert ends["distill"]["teacher_forwards"] == 0, "a frozen teacher with votes is cached like every other"


def test_only_the_keys_learn(
    tuned: tuple[Program, Path, dict[str, Tensor]], free: tuple[Program, Path, dict[str, Tensor]]
) -> None:
    program, runs, weights = tuned
    moved = {name for name in same_weights(weights, free[2]) if "clip" in name}
    assert moved
    assert all(".tip_adapter." in name for name in moved)
    assert any(name.endswith("tip_adapter.keys") for name in moved)
    assert next(r["steps"] for r in records(runs, "stage_end") if r["stage"] == "vote") > 0
    rows, _ = expected_entries(program)
    assert not torch.allclose(program.pool.teacher("clip").network.tip_adapter.keys, rows, atol=1e-3)


@pytest.mark.parametrize(
    ("trains", "learns"), [("teachers.clip.tip_adapter", True), ("teachers.clip.model.image", False)]
)
def test_keys_get_gradients_in_the_trained_form_alone(trains: str, learns: bool) -> None:
    program = build()
    models, stage = program.models(program.phases[0]), program.phases[0].stages[2]
    assert isinstance(stage, TipAdapterStage)
    clip = models.pool.teacher("clip")
    votes, _ = votes_of(clip, "clip")
    votes.adopt(*expected_entries(program))
    train_only(models, [trains], torch.nn.ModuleList())
    batch = program.data.split("labelled").__getitems__(list(range(8)))
    sum(loss.mean() for loss in stage.settings.objectives[0].terms(Step(batch, models)).values()).backward()
    named = {name for name, parameter in clip.named_parameters() if parameter.grad is not None}
    assert (KEYS in named) == learns
    assert not learns or named == {KEYS}
    assert all(p.grad is None for p in models.student.parameters())


def test_alpha_0_is_the_teacher_without_votes(free: tuple[Program, Path, dict[str, Tensor]]) -> None:
    program = free[0]
    clip = program.pool.teacher("clip")
    batch = program.data.split("test").__getitems__(list(range(12)))
    votes, _ = votes_of(clip, "clip")
    kept = float(votes.alpha), float(votes.beta)
    votes.mix(0, 5)
    said, network = clip(batch), clip.network
    plain = network.classifier(said.embeddings["image"], said.heads["logit_scale"][0])
    votes.mix(*kept)
    assert torch.equal(said.logits, plain)


@pytest.mark.parametrize("stage", [TUNED, FREE], ids=["tuned", "free"])
def test_a_cut_run_goes_on_with_its_votes(
    stage: dict[str, Any],
    tuned: tuple[Program, Path, dict[str, Tensor]],
    free: tuple[Program, Path, dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        cut_after(patch, 6)
        with pytest.raises(PowerCutError):
            fit(build(stage), tmp_path)
    resumed = fit(build(stage), tmp_path, resume="auto")
    assert same_weights((tuned if stage is TUNED else free)[2], resumed) == []


def test_a_teacher_that_a_stage_sets_without_training_it_is_in_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the votes changes this teacher; after the cut they have to come from the checkpoint."""
    untrained = ["stages.pretrain.enabled=false", "stages.tune_teacher.enabled=false"]
    whole = fit(build(FREE, *untrained), tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_after(patch, 2)
        with pytest.raises(PowerCutError):
            fit(build(FREE, *untrained), tmp_path)
    again = build(FREE, *untrained)
    resumed = fit(again, tmp_path, resume="auto")
    assert same_weights(whole, resumed) == []
    assert again.pool.teacher("clip").network.tip_adapter.values.any()


def test_mistakes_are_told_before_anything_trains() -> None:
    with pytest.raises(
        ConfigError, match=r"24 labelled rows, 'clip' has place for 20; set its tip_adapter\.entries to 24"
    ):
        dry_run(build(entries=20))
    with pytest.raises(ConfigError, match=r"'clip' has no labelled pictures that could vote; give it tip_adapter"):
        dry_run(build(entries=None))
    with pytest.raises(ConfigError, match="'student' has no labelled pictures"):
        dry_run(build(FREE | {"into": "student"}))
    with pytest.raises(ConfigError, match="no teacher 'clipp'; did you mean 'clip'"):
        dry_run(build(FREE | {"into": "clipp"}))
    with pytest.raises(ConfigError, match="'test' is for the final test"):
        dry_run(build(FREE | {"fit_on": "test"}))
    with pytest.raises(ConfigError, match="no split 'labeled'; did you mean 'labelled'"):
        dry_run(build(FREE | {"from_split": "labeled"}))
    with pytest.raises(ConfigError, match="entries"):
        build(entries=0)
    with pytest.raises(ConfigError, match="into"):
        build({"name": "vote", "kind": "tip_adapter"})
    with pytest.raises(ConfigError, match="betas"):
        build(FREE | {"betas": [0]})


def test_rows_of_a_stage_that_trains_nothing() -> None:
    rows = {row["stage"]: row for row in dry_run(build(FREE))}
    assert (rows["vote"]["trainable"], rows["vote"]["steps"], rows["vote"]["losses"]) == (0, 0, [])
    assert rows["distill"]["steps"] > 0
    raw, _ = load_config("methods/dho", SMALL)
    raw.pop("paper")
    raw["baselines"] = {}
    raw["teachers"]["clip"]["tip_adapter"] = {"entries": 24}
    raw["stages"] = [*raw["stages"], FREE]
    assert expected_seconds({"config": raw, "key": "small"}, ["vote"]) == 0


def test_a_student_can_have_votes_and_a_router_can_choose_a_teacher_with_votes(tmp_path: Path) -> None:
    """Whatever reads logits reads those with votes: here a student, and a second teacher beside the first."""
    raw, _ = load_config("methods/dho", [*SMALL, "stages.pretrain.epochs=1"])
    towers = raw["teachers"]["clip"] | {"tip_adapter": {"entries": 30}}
    distill = {
        "name": "distill",
        "trains": ["student", "router"],
        "epochs": 1,
        "objectives": [{"kind": "routed", "objective": {"kind": "kd"}}],
    }
    learn = {"kind": "class_vectors", "from_split": "labelled", "embedding": "text"}
    raw |= {
        "student": towers,
        "teachers": {"clip": towers, "plain": {"kind": "small_cnn", "inputs": ["image"], "channels": [4]}},
        "router": {"gate": "instance", "selection": {"kind": "dense"}, "combine": "target"},
        "baselines": {},
        "stages": [
            raw["stages"][0] | {"trains": ["teachers.clip"]},
            learn | {"name": "name_classes", "teacher": "clip", "into": "clip"},
            FREE,
            learn | {"name": "own_classes"},
            FREE | {"name": "own_votes", "into": "student", "fit_on": "labelled"},
            distill,
        ],
    }
    raw.pop("paper")
    program = Recipe(parse_recipe(raw, "small"), "small").build()
    fit(program, tmp_path)
    assert [(r["stage"], r["model"]) for r in records(tmp_path, "tip_adapter")] == [
        ("vote", "clip"),
        ("own_votes", "student"),
    ]
    for model in (program.phases[0].student, program.pool.teacher("clip")):
        values = votes_of(model, "it")[0].values
        assert values.sum() == 24
        assert not values[24:].any()
    routed = next(r for r in records(tmp_path, "routing"))
    assert set(routed["shares"]) == {"clip", "plain"}
