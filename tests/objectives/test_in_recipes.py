"""Distillers in whole recipes: their weights fit the taps by themselves, and a cut run goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.dry_run import dry_run
from moekd.errors import ConfigError

from ..engine.conftest import _tiny_kinds  # noqa: F401
from ..engine.tiny import MLP, PowerCutError, cut_after, recipe_of, same_weights, simple, train

TAPS = {"student_tap": "fc1", "teacher_tap": {"narrow": "fc1", "wide": "fc2"}}
TEACHERS = {
    "narrow": {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [7], "taps": ["fc1"]},
    "wide": {"kind": "mlp", "inputs": ["left"], "in_features": 8, "hidden": [12, 20], "taps": ["fc2"]},
}
ROUTER = {"gate": {"kind": "instance"}, "selection": "top_k"}


def recipe(*objectives: Any, **stage: Any) -> dict[str, Any]:
    return simple(
        {"objectives": ["cross_entropy", *objectives], **stage},
        student=MLP | {"taps": ["fc1"]},
        teachers=TEACHERS,
        router=ROUTER,
    )


EVERY = [
    {"kind": "fitnets", **TAPS},
    {"kind": "rkd", **TAPS, "embed_dim": 5},
    {"kind": "similarity_preserving", **TAPS},
    {"kind": "cka", **TAPS},
    {"kind": "crd", **TAPS, "negatives": 4, "embed_dim": 6},
    {"kind": "ofa", "student_taps": ["fc1"]},
    {"kind": "c2kd", "teacher": "wide", "student_tap": "fc1", "teacher_tap": "fc2"},
    {"kind": "kd", "temperature": 2.0, "standardise": True},
    {"kind": "dkd"},
    {"kind": "nkd"},
    {"kind": "dist"},
    {"kind": "mlld"},
    {"kind": "dml"},
]


def test_every_distiller_fits_the_taps() -> None:
    (row,) = dry_run(recipe_of(recipe(*EVERY)).build())
    names = {name.partition("/")[0] for name in row["losses"]} - {"cross_entropy"}
    assert names == {objective["kind"] for objective in EVERY}


@pytest.mark.parametrize("objective", [o for o in EVERY if o["kind"] not in ("c2kd", "dml")], ids=lambda o: o["kind"])
def test_every_pairwise_one_can_be_routed(objective: dict[str, Any]) -> None:
    raw = recipe({"kind": "routed", "objective": objective}, trains=["student", "router"])
    (row,) = dry_run(recipe_of(raw).build())
    assert "routed" in row["losses"]


def test_a_cut_run_goes_on_with_its_memory_banks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = recipe({"kind": "crd", **TAPS, "negatives": 4, "embed_dim": 6}, {"kind": "fitnets", **TAPS}, epochs=2)
    whole = train(raw, tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_after(patch, 4)
        with pytest.raises(PowerCutError):
            train(raw, tmp_path / "cut")
    resumed = train(raw, tmp_path / "cut", resume="auto")
    assert same_weights(whole.weights(), resumed.weights()) == []
    both = [run.program.phases[0].stages[0].settings.objectives[1].objective.state_dict() for run in (whole, resumed)]
    banks = [key for key in both[0] if key.endswith("bank")]
    assert len(banks) == 4
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])


def test_taps_that_do_not_exist_are_named() -> None:
    """F2, F6: an objective that needs a tap which nobody provides."""
    with pytest.raises(ConfigError, match=r"stages\.learn\.objectives\[1\].*'fc2' is no tap of the teacher 'narrow'"):
        recipe_of(recipe({"kind": "fitnets", "student_tap": "fc1", "teacher_tap": "fc2", "teacher": "narrow"})).build()
    with pytest.raises(ConfigError, match=r"objectives\[1\].*'fc9' is no tap of the student; name it under its 'taps'"):
        recipe_of(recipe({"kind": "rkd", "student_tap": "fc9", "teacher_tap": "fc1"})).build()
