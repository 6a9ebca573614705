"""Stages on few-shot episodes: whole runs, runs that were cut, what the loss sees, and settings that do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from moekd.ablation.cost import TIMED, _first
from moekd.data import make_loader
from moekd.dry_run import dry_run
from moekd.errors import ConfigError, MoekdError
from moekd.networks import NETWORKS
from moekd.objectives import PrototypeCE
from moekd.step import Models, Step
from moekd.teachers import TeacherPool

from ..objectives.towers import TwoTowers
from .conftest import _tiny_kinds  # noqa: F401
from .tiny import PowerCutError, cut_after, recipe_of, same_weights, simple, train

EPISODES = {"ways": 3, "shots": 2, "queries": 3, "per_epoch": 6}


@pytest.fixture(autouse=True, scope="module")
def _networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS._members, "plain_towers", TwoTowers)
        yield


def raw(stage: dict[str, Any] | None = None, episodes: dict[str, Any] | None = EPISODES, **data: Any) -> dict[str, Any]:
    prototypes = {"kind": "prototype_ce", "shots": 2, "scale": 5.0}
    return simple(
        {"split": "episodes", "objectives": [prototypes]} | (stage or {}),
        student={"kind": "plain_towers", "inputs": ["left", "right"]},
        data={"kind": "tiny", "rows": 60, "labels": 40, "batch_size": 16} | data | {"episodes": episodes},
    )


def test_a_run_learns_from_episodes_and_counts_them(tmp_path: Path) -> None:
    run = train(raw({"epochs": 6, "optimizer": {"kind": "adam", "lr": 0.01}}), tmp_path)
    ends = run.records("stage_end")
    assert [record["steps"] for record in ends] == [36]
    losses = [record["losses"]["prototype_ce"] for record in run.records("train")]
    assert losses[-1] < 0.7 * losses[0]
    assert [row["steps"] for row in dry_run(recipe_of(raw({"epochs": 3, "accumulate": 2})).build())] == [9]


def test_a_run_on_episodes_that_was_cut_goes_on_exactly(tmp_path: Path) -> None:
    whole = train(raw({"epochs": 2}), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 8)
        with pytest.raises(PowerCutError):
            train(raw({"epochs": 2}), tmp_path / "cut")
    resumed = train(raw({"epochs": 2}), tmp_path / "cut", resume="auto")
    assert same_weights(resumed.weights(), whole.weights()) == []
    assert resumed.records() == whole.records()


def test_the_loss_takes_the_first_rows_as_examples_and_the_classes_of_the_episode_alone() -> None:
    program = recipe_of(raw()).build()
    student = program.phases[0].student
    for batch in make_loader(program.data.split("episodes"), 16, shuffle=True, seed=7):
        said = F.normalize(student(batch).embeddings["image"], dim=1)
        examples, queries = said[:6].view(3, 2, -1).mean(dim=1), said[6:]
        expected = F.cross_entropy(5 * queries @ examples.T, torch.arange(3).repeat_interleave(3), reduction="none")
        loss = PrototypeCE(4, shots=2, scale=5.0)(Step(batch, Models(student, TeacherPool({}))))["prototype_ce"]
        assert loss.mask.tolist() == [False] * 6 + [True] * 9
        torch.testing.assert_close(loss.values[6:], expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (raw({"objectives": [{"kind": "prototype_ce", "shots": 1}]}), r"prototype_ce\.shots is 1, but .* has 2"),
        (raw(episodes=EPISODES | {"queries": 15}), r"data\.episodes: episodes of 3 classes .* only 0 of 4 classes"),
        (raw(episodes=EPISODES | {"ways": 1}), r"data\.episodes\.ways"),
        (raw(episodes=None), "no split 'episodes'"),
    ],
)
def test_settings_that_do_not_fit(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MoekdError, match=message):
        train(changed, tmp_path)


def test_every_row_may_be_a_query_too() -> None:
    rows = dry_run(recipe_of(raw({"objectives": [{"kind": "prototype_ce"}]})).build())
    assert rows[0]["losses"] == ["prototype_ce"]


def test_the_check_finds_other_shots_before_training() -> None:
    with pytest.raises(ConfigError, match="2 shots a class; make them equal"):
        dry_run(recipe_of(raw({"objectives": [{"kind": "prototype_ce", "shots": 3}]})).build())


def test_the_cost_of_an_ablation_counts_episodes() -> None:
    program = recipe_of(raw({"epochs": 3}, EPISODES | {"per_epoch": 50})).build()
    few = _first(program.data.split("episodes"), 4)
    assert [len(batch["id"]) for batch in make_loader(few, 4, shuffle=True)] == [15] * TIMED
    assert len(_first(program.data.split("train"), 4)) == 4
