"""Gates that measure the teachers before the first step: in runs, after a stop, and in a dry run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.program import Program
from moekd.routers.gates import ClassOracleGate
from moekd.stages.fit_gates import trial_batch

from ..engine.tiny import FULL, KINDS, MLP, PowerCutError, cut_after, recipe_of, same_weights, simple, train, weights_of

TEACHER = {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12]}
TEACHERS = {"a": TEACHER, "b": MLP}
GATE: dict[str, Any] = {"kind": "class_oracle"}


@pytest.fixture(autouse=True, scope="module")
def _tiny_kinds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, cls in KINDS:
            patch.setitem(registry._members, name, cls)
        yield


def config(gate: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a run that trains teachers and then distils from the best of each class."""
    stages = [
        {"name": "teach", "trains": ["teachers"], "epochs": 2, "objectives": [{"kind": "cross_entropy", "on": "all"}]},
        {"name": "distill", "trains": ["student"], "epochs": 2, "objectives": ["cross_entropy", "routed_kd"]},
    ]
    router = {"gate": gate or GATE, "selection": "dense", "combine": "loss", "signal": "none"}
    parts = {"student": MLP, "teachers": TEACHERS, "router": router, "stages": stages, "trainer": FULL["trainer"]}
    return simple(**(parts | changes))


def accuracies(program: Program, split: str) -> torch.Tensor:
    """Return the accuracy of every teacher on every class by a loop."""
    data = program.data.split(split)
    batch = data.__getitems__(list(range(len(data))))
    rows = []
    for name in program.pool.names:
        hits = program.pool(batch, [name])[name].logits.argmax(1) == batch["label"]
        classes = range(program.data.num_classes)
        mean = [hits[batch["label"] == c].float().mean() if (batch["label"] == c).any() else hits.float().mean()
                for c in classes]  # fmt: skip
        rows.append(torch.stack(mean))
    return torch.stack(rows)


@pytest.mark.parametrize("split", ["val", "train"])
def test_the_teachers_are_measured_as_they_are_when_the_stage_starts(split: str, tmp_path: Path) -> None:
    done = train(config(GATE | {"fit_on": split}), tmp_path)
    gate = done.program.phases[0].router.gate
    torch.testing.assert_close(gate.accuracy, accuracies(done.program, split))
    assert done.results["routing"]["by_class"] is not None
    assert gate.fitted


def test_a_stopped_run_does_not_measure_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config(), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 11)
        with pytest.raises(PowerCutError):
            train(config(), tmp_path / "stopped")
    calls: list[int] = []
    monkeypatch.setattr(ClassOracleGate, "fit", lambda *_: calls.append(1))
    resumed = train(config(), tmp_path / "stopped", resume="auto")
    assert calls == []
    assert same_weights(resumed.weights(), whole.weights()) == []
    assert resumed.records() == whole.records()


def test_a_dry_run_leaves_no_trace() -> None:
    program = recipe_of(config()).build()
    before = weights_of(program)
    rows = dry_run(program)
    gate = program.phases[0].router.gate
    assert not gate.fitted
    assert gate.accuracy.isnan().all()
    assert [key for key in same_weights(weights_of(program), before) if "accuracy" not in key] == []
    assert program.pool.forwards == 0
    assert [row["teacher_forwards"] for row in rows] == [2, 0]


def test_a_dry_run_with_few_labels_fits_all_the_same() -> None:
    data = {"kind": "tiny", "batch_size": 16, "labels": 1}
    assert dry_run(recipe_of(config(GATE | {"fit_on": "train"}, data=data)).build())


def test_given_accuracies_are_kept(tmp_path: Path) -> None:
    table = [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]
    done = train(config(GATE | {"accuracies": table}), tmp_path)
    assert torch.equal(done.program.phases[0].router.gate.accuracy, torch.tensor(table))


def test_a_router_that_no_stage_uses_is_not_measured(tmp_path: Path) -> None:
    stages = [{"name": "alone", "trains": ["student"], "epochs": 1, "objectives": ["cross_entropy"]}]
    done = train(config(stages=stages), tmp_path)
    assert done.results["routing"] is None


def test_no_such_split_is_a_mistake_in_the_config() -> None:
    with pytest.raises(ConfigError, match="fit_on"):
        recipe_of(config(GATE | {"fit_on": "test"}))


def test_a_trial_batch_has_labels_everywhere() -> None:
    labels = torch.tensor([2, -1])
    found = trial_batch({"label": labels, "labelled": labels >= 0, "id": torch.arange(2)})
    assert found["label"].tolist() == [2, 0]
    assert found["labelled"].all()
