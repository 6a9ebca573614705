"""Whole runs with cached teachers against the same runs with live ones: same losses, same weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.cache import Needs, Table, cache_in_memory
from moekd.errors import ConfigError
from moekd.stages.teacher_plan import plan_teachers
from moekd.stages.trainable import train_only
from moekd.teachers import Teacher, TeacherPool

from ..engine.tiny import MLP, recipe_of, simple, train
from .builders import Towers as BuiltTowers
from .builders import all_rows, distance, pass_of, tables, through
from .builders import live as live_signals
from .runs import EMBEDDINGS, ROUTED, farthest, recipe


@pytest.mark.parametrize("objectives", [EMBEDDINGS, ROUTED], ids=["embeddings", "routed"])
def test_cached_is_live(objectives: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """R4: losses of cached and live teachers."""
    live = train(recipe(objectives, "off"), tmp_path / "live")
    assert live.records("stage_end")[0]["teacher_forwards"] > 0
    for place in ("auto", "disk"):
        with caplog.at_level(logging.INFO):
            cached = train(recipe(objectives, place, cache={"folder": str(tmp_path / "signals")}), tmp_path / place)
        assert cached.records("stage_end")[0]["teacher_forwards"] == 0
        assert farthest(live, cached) < 1e-6
    assert "of 2 teachers cached in memory and in" in caplog.text
    assert "of 2 teachers cached on disk in" in caplog.text


def test_filling_draws_no_random_numbers(tmp_path: Path) -> None:
    teachers = pass_of()
    before = torch.get_rng_state()
    cache_in_memory(teachers)
    for mapped in (False, True):
        through(tmp_path, teachers, mapped=mapped, logits="sampled", k=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_tapped_activations_are_kept_and_only_those_that_are_read(tmp_path: Path) -> None:
    def taps(place: str) -> dict[str, Any]:
        teacher = {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12, 9], "taps": ["fc1", "fc2"]}
        fitnets = {"kind": "fitnets", "student_tap": "fc1", "teacher_tap": "fc2"}
        stage = {"objectives": ["cross_entropy", fitnets], "cache": place}
        student, signals = MLP | {"taps": ["fc1"]}, {"folder": str(tmp_path / "signals")}
        return simple(stage, student=student, teachers={"right": teacher}, cache=signals)

    live, cached = train(taps("off"), tmp_path / "live"), train(taps("disk"), tmp_path / "cached")
    assert cached.records("stage_end")[0]["teacher_forwards"] == 0
    assert farthest(live, cached) < 1e-6
    stored = [Table.open(folder).identity for folder in tables(tmp_path / "signals")]
    assert {(table.split, table.signal) for table in stored} == {("train", "features/fc2"), ("test", "logits")}


def test_teachers_that_are_the_same_share_a_table(tmp_path: Path) -> None:
    pool = TeacherPool({name: Teacher(BuiltTowers(4), ["x"], name=name) for name in ("one", "two")}).eval()
    pool.teacher("two").load_state_dict(pool.teacher("one").state_dict())
    teachers = pass_of(pool, variants=["one", "two"], needs=Needs())
    for _ in range(2):
        cache = through(tmp_path, teachers)
        assert len(tables(tmp_path)) == 1
        assert distance(cache(all_rows(teachers)), live_signals(teachers, all_rows(teachers)), Needs()) < 1e-6


def test_limits_decide_the_place(tmp_path: Path) -> None:
    def place(wish: str, **limits: Any) -> tuple[str | None, str]:
        program = recipe_of(recipe(EMBEDDINGS, wish, cache={"folder": str(tmp_path), **limits})).build()
        settings, models = program.phases[0].stages[0].settings, program.models(program.phases[0])
        train_only(models, settings.trains, torch.nn.ModuleList(settings.objectives))
        plan = plan_teachers(models, program.data, settings, program.cache)
        assert program.pool.forwards == 0
        return plan.place, plan.reason

    assert place("auto") == ("memory", "")
    assert place("auto", memory_gb=0) == ("disk", "")
    assert place("disk") == ("disk", "")
    assert place("off") == (None, "switched off")
    found, reason = place("auto", memory_gb=0, disk_gb=0)
    assert found is None
    assert "more than cache.disk_gb: 0" in reason
    with pytest.raises(ConfigError, match=r"but the signals take .* GB, more than cache\.memory_gb: 0; use"):
        place("memory", memory_gb=0)
    with pytest.raises(ConfigError, match=r"more than cache\.disk_gb: 0; use cache: auto"):
        place("disk", disk_gb=0)
