"""A gate that is fitted on held-out labels before distillation: runs, stops, processes, dry runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moekd.dry_run import dry_run
from moekd.errors import ConfigError

from .test_distributed import assert_close, in_two, loaded
from .tiny import FULL, MLP, PowerCutError, cut_after, recipe_of, same_weights, simple, train

TEACHER = {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12]}
FIT = {"name": "fit_router", "trains": ["router"], "split": "val", "epochs": 3, "objectives": ["routing"]}
DISTILL = {"name": "distill", "trains": ["student"], "epochs": 1, "objectives": ["cross_entropy", "routed_kd"]}
SIGNALS: dict[str, dict[str, Any]] = {
    "task": {"signal": "task", "mix": "logits"},
    "oracle": {"signal": "oracle", "oracle_tau": 0.5, "balance": ["z_loss"]},
}


def config(signal: str, **changes: Any) -> dict[str, Any]:
    """Return a run that fits a gate on 18 held-out rows and then distils."""
    gate = {"kind": "mlp", "on": "logits_and_stats", "hidden": 6}
    router = {"gate": gate, "selection": "dense", "combine": "target"} | SIGNALS[signal]
    parts = {"student": MLP, "teachers": {"a": TEACHER, "b": MLP}, "router": router, "trainer": FULL["trainer"]}
    return simple(**(parts | {"stages": [FIT, DISTILL]} | changes))


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_router_changes_and_then_stays_as_it_is_afterwards(signal: str, tmp_path: Path) -> None:
    raw = config(signal)
    start = {key: value.clone() for key, value in recipe_of(raw).build().phases[0].router.state_dict().items()}
    fitted = train(config(signal, stages=[FIT]), tmp_path / "fitted")
    whole = train(raw, tmp_path / "whole")
    router = whole.program.phases[0].router.state_dict()
    assert all((router[key] != value).any() for key, value in start.items() if "gate" in key)
    for key, value in fitted.program.phases[0].router.state_dict().items():
        np.testing.assert_array_equal(router[key], value)
    losses = [record["losses"] for record in whole.records("train") if record["stage"] == "fit_router"]
    assert all(set(loss) == {f"router_{signal}", "total"} | ({"balance"} & set(loss)) for loss in losses)


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_stopped_run_ends_as_one_that_was_never_stopped(signal: str, tmp_path: Path) -> None:
    whole = train(config(signal), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 5)
        with pytest.raises(PowerCutError):
            train(config(signal), tmp_path / "stopped")
    resumed = train(config(signal), tmp_path / "stopped", resume="auto")
    assert same_weights(resumed.weights(), whole.weights()) == []
    assert resumed.records() == whole.records()


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    data = {"kind": "tiny", "batch_size": 16, "rows": 41, "labels": 20}
    stages = [FIT, FIT | {"name": "more", "split": "train"}, DISTILL]
    raw = config("oracle", data=data, stages=stages)
    for code, messages in in_two(raw, tmp_path / "two"):
        assert code == 0, messages
    one, two = train(raw, tmp_path / "one"), loaded(raw, tmp_path / "two")
    assert_close(two.records(), one.records(), "record", 1e-4)
    for key, value in one.weights().items():
        np.testing.assert_allclose(two.weights()[key], value, atol=1e-4, rtol=1e-4, err_msg=key)


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_dry_run_accepts_it(signal: str) -> None:
    rows = dry_run(recipe_of(config(signal)).build())
    assert rows[0]["losses"] == [*(["balance"] if signal == "oracle" else []), f"router_{signal}"]
    assert rows[0]["teachers"] == "cached"


def test_a_stage_in_which_nothing_teaches_the_router_is_refused() -> None:
    raw = config("task")
    raw["router"] |= {"signal": "aux_only"}
    with pytest.raises(ConfigError, match=r"stages\.fit_router: no loss reaches what 'trains' names"):
        dry_run(recipe_of(raw).build())
