"""Momentum teachers in whole runs: they follow the student, and a run that was cut goes on bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moekd.config import parse_recipe, recipe_dict
from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.networks import NETWORKS
from moekd.registry import Injected
from moekd.signals import Signals
from moekd.stages.train import TrainLoop
from moekd.teachers import MomentumTeacher

from ..objectives.towers import TwoTowers
from .tiny import PowerCutError, cut_after, recipe_of, same_weights, simple, train


class TowersAndClasses(nn.Module):
    """Two towers and a classifier on the image's embedding."""

    def __init__(self, num_classes: Injected[int], dim: int = 6) -> None:
        super().__init__()
        self.towers, self.classes = TwoTowers(dim), nn.Linear(dim, num_classes)

    def forward(self, left_BD: torch.Tensor, right_BD: torch.Tensor) -> Signals:
        said = self.towers(left_BD, right_BD)
        return Signals(self.classes(said.embeddings["image"]), embeddings=said.embeddings, heads=said.heads)


@pytest.fixture(autouse=True, scope="module")
def _towers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS._members, "two_towers", TowersAndClasses)
        yield


TOWERS = {"kind": "two_towers", "inputs": ["left", "right"]}
BESIDE = {"momentum": {"follows": {"momentum": 0.8}}, "clip": TOWERS | {"dim": 9}}
CONTRAST = {"kind": "momentum_contrastive", "teacher": "momentum", "queue": 24, "scale": "model"}


def recipe(*objectives: Any, **changes: Any) -> dict[str, Any]:
    options = {"student": TOWERS, "teachers": BESIDE} | changes
    return simple({"objectives": list(objectives), "epochs": 3, **options.pop("stage", {})}, **options)


def test_the_teacher_takes_the_students_section() -> None:
    config = parse_recipe(recipe(CONTRAST, student=TOWERS | {"dim": 7}), "t")
    assert config.teachers["momentum"].spec.options == {"dim": 7}
    again = parse_recipe(recipe_dict(config), "t")
    assert again.teachers["momentum"] == config.teachers["momentum"]


def test_it_follows_the_student_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputed by hand from the students that the optimizer left."""
    students: list[dict[str, torch.Tensor]] = []
    move = TrainLoop.move

    def noted(loop: TrainLoop) -> None:
        if not students:
            students.append({k: v.detach().clone() for k, v in loop.context.models.student.named_parameters()})
        move(loop)
        students.append({k: v.detach().clone() for k, v in loop.context.models.student.named_parameters()})

    monkeypatch.setattr(TrainLoop, "move", noted)
    run = train(recipe(CONTRAST), tmp_path)
    average = students[0]
    for student in students[1:]:
        average = {name: 0.8 * average[name] + 0.2 * student[name] for name in average}
    for name, value in run.program.pool.teacher("momentum").named_parameters():
        torch.testing.assert_close(value, average[name], atol=1e-6, rtol=1e-5)
    assert set(run.results["test"]["test"]) == {"student", "momentum", "clip"}


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_cut_run_goes_on_exactly(tmp_path: Path, steps: int) -> None:
    """Average, queue and router; cut inside an epoch, at its end, and in the second stage."""
    raw = recipe(
        {**CONTRAST, "weights": "router", "alpha": {"kind": "linear", "start": 0, "end": 0.4, "until": 0.3}},
        stage={"trains": ["student", "router"], "epochs": 2},
        router={"gate": {"kind": "instance"}, "selection": "dense", "combine": "target"},
    )
    raw["stages"] += [raw["stages"][0] | {"name": "again"}]
    whole = train(raw, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, steps)
        with pytest.raises(PowerCutError):
            train(raw, tmp_path / "cut")
    resumed = train(raw, tmp_path / "cut", resume="auto")
    assert same_weights(resumed.weights(), whole.weights()) == []
    assert resumed.records() == whole.records()
    for stages in ("learn", "again"):
        queues = [next(s for s in f.program.phases[0].stages if s.name == stages) for f in (whole, resumed)]
        a, b = (stage.settings.objectives[0].objective.queue.state_dict() for stage in queues)
        assert stages == "learn" or all(torch.equal(a[key], b[key]) for key in a)


def test_every_stage_and_baseline_starts_from_its_own_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restarted: list[bool] = []
    restart = MomentumTeacher.restart

    def noted(teacher: MomentumTeacher, student: Any) -> None:
        restart(teacher, student)
        mine = dict(teacher.named_parameters())
        restarted.append(all(torch.equal(mine[name], value) for name, value in student.named_parameters()))

    monkeypatch.setattr(MomentumTeacher, "restart", noted)
    stage = {"trains": ["student"], "epochs": 1}
    other = {"stages": [{"name": "other", **stage, "objectives": [CONTRAST]}]}
    alone = {"stages": [{"name": "alone", **stage, "objectives": [{"kind": "contrastive"}]}]}
    train(recipe(CONTRAST, baselines={"other": other, "alone": alone}), tmp_path)
    assert restarted == [True, True], "once a stage that reads it"


def test_any_objective_can_read_it(tmp_path: Path) -> None:
    """Soft labels for classes, as in the paper's fine-tuning; an external teacher beside it through a router."""
    raw = recipe(
        {"kind": "cross_entropy", "weight": 0.6},
        {"kind": "kd", "teacher": "momentum", "temperature": 1.0, "weight": 0.4},
        {"kind": "routed", "objective": {"kind": "contrastive_kd"}},
        stage={"trains": ["student", "router"], "micro_batch": 4},
        router={"gate": {"kind": "instance"}, "selection": {"kind": "top_k", "k": 1}},
    )
    (row,) = dry_run(recipe_of(raw).build())
    assert row["teachers"] == "teachers follow the student (momentum)"
    train(raw, tmp_path)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"teachers\.momentum\.follows: .*weights differ"):
        recipe_of(recipe(CONTRAST, teachers={"momentum": TOWERS | {"dim": 9, "follows": {}}})).build()
    with pytest.raises(ConfigError, match="where and as the student does"):
        recipe_of(recipe(CONTRAST, teachers={"momentum": {"follows": {}, "device": "cpu"}})).build()
    with pytest.raises(ConfigError, match="follows"):
        parse_recipe(recipe(CONTRAST, student=TOWERS | {"follows": {}}), "t")
    with pytest.raises(ConfigError, match=r"momentum"):
        parse_recipe(recipe(CONTRAST, teachers={"momentum": {"follows": {"momentum": 1.0}}}), "t")
    with pytest.raises(ConfigError, match="kind"):
        parse_recipe(recipe(CONTRAST, teachers={"momentum": {"inputs": ["left"]}}), "t")
