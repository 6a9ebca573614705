"""Every registered gate and selection brings a router in which it works, and says so where it can't."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.routers import GATES, SELECTIONS, Gate, example_routers

from ..engine.tiny import FULL, KINDS, MLP, recipe_of, simple, train

TEACHER = {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12]}
NAMES = ["a", "b", "c"]
ARMS = example_routers(len(NAMES))
REFUSED = {
    "task": "the gate 'task' reads field 'task', which the data set does not have",
    "modality": "the gate 'modality' reads field 'modality', which the data set does not have",
    "dense_instance": "'dense_instance' needs dense student logits .* found \\(4, 4\\); use 'instance'",
}


@pytest.fixture(autouse=True, scope="module")
def _tiny_kinds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, cls in KINDS:
            patch.setitem(registry._members, name, cls)
        yield


def config(router: dict[str, Any]) -> dict[str, Any]:
    """Return a run of two steps over three frozen teachers."""
    stage = {"trains": ["student", "router"], "objectives": ["cross_entropy", "routed_kd"], "steps": 2}
    teachers = dict.fromkeys(NAMES, TEACHER)
    return simple(stage, trainer=FULL["trainer"], student=MLP, teachers=teachers, router=router)


def test_every_gate_and_selection_has_an_arm() -> None:
    gates = {arm["gate"]["kind"] for arm in ARMS.values()}
    selections = {arm["selection"]["kind"] for arm in ARMS.values()}
    assert gates == set(GATES.names())
    assert selections == set(SELECTIONS.names())
    assert {"single_0", "single_1", "single_2"} <= set(ARMS)
    assert "single_3" not in ARMS
    assert len({str(arm) for arm in ARMS.values()}) == len(ARMS)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_arms_never_choose_all_teachers_where_they_could_choose_fewer(count: int) -> None:
    for arm in example_routers(count).values():
        assert arm["selection"].get("k", 1) <= max(1, count - 1)


@pytest.mark.parametrize("name", [name for name in ARMS if name not in REFUSED])
def test_every_arm_trains(name: str, tmp_path: Path) -> None:
    done = train(config(ARMS[name]), tmp_path)
    losses = done.records("train")[-1]["losses"]
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    assert len(done.results["routing"]["shares"]) == len(NAMES)


@pytest.mark.parametrize("name", REFUSED)
def test_an_arm_that_does_not_apply_says_why_in_the_dry_run(name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]):
        dry_run(recipe_of(config(ARMS[name])).build())


def test_a_new_gate_gets_its_arm_by_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GATES, "_members", dict(GATES._loaded()))

    @GATES.register("brand_new")
    class New(Gate):
        pass

    assert example_routers(2)["brand_new"] == {
        "gate": {"kind": "brand_new"},
        "selection": {"kind": "dense"},
        "balance": [],
        "combine": "target",
        "signal": "task",
        "mix": "probs",
    }


def test_a_name_that_gate_and_selection_share_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GATES, "_members", dict(GATES._loaded()) | {"hash": GATES.get("uniform")})
    arms = example_routers(2)
    assert arms["hash"]["gate"] == {"kind": "hash"}
    assert arms["hash_selection"]["selection"] == {"kind": "hash", "k": 1}
