"""Whole runs of learned routers from a config: every state they have survives a stop, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..engine.tiny import FULL, KINDS, MLP, PowerCutError, cut_after, same_weights, simple, train

STATS = {"on": "teacher_stats"}
ROUTERS: dict[str, dict[str, Any]] = {
    "noisy": {
        "gate": {"kind": "linear", **STATS, "zero_init": True, "jitter": 0.1},
        "selection": {
            "kind": "noisy_top_k",
            "k": 1,
            "noise": "learned",
            **STATS,
            "scale": {"kind": "linear", "start": 2.0, "end": 1.0},
        },
        "balance": ["importance", "load", "z_loss"],
    },
    "bias": {
        "gate": {"kind": "mlp", "on": "input_feature", "source": "right"},
        "selection": {"kind": "bias_balanced", "k": 1, "rate": 0.1, "normalise": "none"},
        "combine": "loss",
    },
    "prototypes": {
        "gate": {"kind": "prototype", "on": "student_feature", "source": "fc1", "detach_input": False},
        "selection": {"kind": "top_k", "k": 1},
        "balance": ["routing_contrastive", {"kind": "switch", "choices": "first"}],
    },
    "expert_choice": {
        "gate": {"kind": "cosine", "on": "logits_and_stats", "projection": 16},
        "selection": {"kind": "expert_choice", "capacity": 1.0},
        "combine": "loss",
    },
    "explored": {
        "gate": "static",
        "selection": {"kind": "top_k", "explore": {"kind": "linear", "start": 1.0, "end": 0.2}},
        "balance": ["switch"],
        "signal": "task",
    },
    "tasks": {
        "gate": {"kind": "task", "tasks": 4, "field": "label", **STATS},
        "selection": {"kind": "dense", "temperature": {"kind": "exponential", "start": 2.0, "end": 0.5}},
        "balance": [{"kind": "mutual_information", "running": True, "tasks": 4, "warmup": 1, "weight": 0.1}],
        "combine": "target",
        "signal": "aux_only",
    },
    "tempered": {
        "gate": "linear",
        "selection": {"kind": "dense", "temperature": {"kind": "linear", "start": 3.0, "end": 0.5}},
        "balance": [{"kind": "entropy", "weight": -0.1}],
        "combine": "target",
        "signal": "task",
    },
}


@pytest.fixture(autouse=True, scope="module")
def _tiny_kinds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, cls in KINDS:
            patch.setitem(registry._members, name, cls)
        yield


def config(name: str) -> dict[str, Any]:
    """Return a run of six steps, three an epoch, with two frozen teachers."""
    stage = {"trains": ["student", "router"], "objectives": ["cross_entropy", "routed_kd"]}
    teacher = {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12]}
    parts = {"student": MLP | {"taps": ["fc1"]}, "teachers": {"a": teacher, "b": teacher}, "router": ROUTERS[name]}
    return simple(stage, trainer=FULL["trainer"], **parts)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_stopped_run_ends_as_one_that_was_never_stopped(name: str, tmp_path: Path) -> None:
    whole = train(config(name), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 5)
        with pytest.raises(PowerCutError):
            train(config(name), tmp_path / "stopped")
    resumed = train(config(name), tmp_path / "stopped", resume="auto")
    assert same_weights(resumed.weights(), whole.weights()) == []
    assert resumed.records() == whole.records()
    assert len(whole.results["routing"]["shares"]) == 2
