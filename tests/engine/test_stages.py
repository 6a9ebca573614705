"""MST-Distill's third stage within the engine: who gets gradients, what stays as it is, which teachers run.

The invariants are those of the method (arXiv 2507.07015); `tests/test_step.py` holds them for single steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moekd.stages.train import TrainLoop

from .tiny import FULL, ROUTED, Finished, full, simple, train

ALL_ROWS = 40


def distill(stage: dict[str, Any] | None = None, **router: Any) -> dict[str, Any]:
    """Return the full config, cut to short first stages and a third stage with changes."""
    raw = full(baselines={})
    raw["student"]["dropout"] = 0.0
    raw["stages"][0]["epochs"] = raw["stages"][1]["epochs"] = 1
    raw["stages"][2] |= {"epochs": 3, **(stage or {})}
    raw["router"] |= router
    return raw


def watch(monkeypatch: pytest.MonkeyPatch, name: str, look: Callable[[TrainLoop], None], after: bool = False) -> None:
    """Call `look` before (or after) a method of the loop of the third stage."""
    method = getattr(TrainLoop, name)

    def wrapped(loop: TrainLoop, *arguments: Any) -> Any:
        if loop.settings.name == "distill" and not after:
            look(loop)
        result = method(loop, *arguments)
        if loop.settings.name == "distill" and after:
            look(loop)
        return result

    monkeypatch.setattr(TrainLoop, name, wrapped)


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the gradients that exist and are not all zero."""
    named = ((name, parameter.grad) for name, parameter in module.named_parameters())
    return {name: gradient.clone() for name, gradient in named if gradient is not None and bool(gradient.any())}


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_select_gives_the_router_no_gradient_from_distillation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    seen: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def look(loop: TrainLoop) -> None:
        models = loop.context.models
        assert models.router is not None
        seen.append((gradients(models.router), gradients(models.student)))

    watch(monkeypatch, "update", look)
    only_kd = {"objectives": ["routed_kd"], "cache": cache, "epochs": 1}
    train(distill(only_kd, balance=[]), tmp_path, "kd")
    assert all(student and not router for router, student in seen)

    balances = []
    for weight in (1.0, 1000.0):
        seen.clear()
        objectives = [{"kind": "routed_kd", "weight": weight}]
        train(distill({"objectives": objectives, "cache": cache, "epochs": 1}), tmp_path, f"weight {weight:g}")
        balances.append(seen[0])
    (small, student), (large, moved) = balances
    assert small
    assert all(torch.equal(small[name], large[name]) for name in small)
    assert not torch.equal(student["network.fc2.weight"], moved["network.fc2.weight"])


def test_loss_weights_give_the_router_a_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    watch(monkeypatch, "update", lambda loop: seen.append(bool(gradients(loop.modules["router"]))))
    train(distill({"objectives": ["routed_kd"]}, balance=[], combine="loss", selection="dense"), tmp_path)
    assert all(seen)


MODES = {
    "cached": {"cache": "memory"},
    "live, rows routed first": {"cache": "off"},
    "live, all teachers": {
        "cache": "off",
        "objectives": [*FULL["stages"][2]["objectives"], {"kind": "kd", "weight": 0.0}],
    },
}


def third_stage(finished: Finished) -> list[dict[str, Any]]:
    """Return the records of the third stage, without what only one of the runs has."""
    records = [record for record in finished.records() if record["stage"] == "distill"]
    for record in records:
        record.pop("weights", None)
        record.pop("teacher_forwards", None)
        record.get("losses", {}).pop("kd", None)
    return records


def close(a: Any, b: Any) -> bool:
    """Compare nested values, numbers to 1e-6."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float):
        return bool(a == pytest.approx(b, abs=1e-6))
    return bool(a == b)


def test_cached_and_live_teachers_train_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: cache on and off."""
    steps: dict[str, list[dict[str, torch.Tensor]]] = {mode: [] for mode in MODES}
    running = [""]

    def look(loop: TrainLoop) -> None:
        states = {name: module.state_dict() for name, module in loop.modules.items()}
        steps[running[0]].append({f"{n}.{k}": v.clone() for n, state in states.items() for k, v in state.items()})

    watch(monkeypatch, "update", look, after=True)
    finished = {}
    for mode, stage in MODES.items():
        running[0] = mode
        raw = distill(stage)
        raw["trainer"]["log_every"] = 1
        finished[mode] = train(raw, tmp_path, mode.replace(",", ""))
    reference = "cached"
    for mode in MODES:
        assert close(third_stage(finished[mode]), third_stage(finished[reference])), mode
        assert len(steps[mode]) == 9
        for a, b in zip(steps[mode], steps[reference], strict=True):
            for key in a:
                torch.testing.assert_close(a[key], b[key], atol=1e-6, rtol=0, msg=f"{mode}: {key}")


def hooks(module: nn.Module) -> int:
    """Return the number of hooks anywhere in a module."""
    return sum(
        len(getattr(part, group))
        for part in module.modules()
        for group in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    )


@pytest.mark.parametrize("mode", MODES)
def test_teachers_and_masks_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """N5: teachers are bit-equal after training, get no gradient and stay in eval mode."""
    states: list[dict[str, torch.Tensor]] = []
    counts: list[int] = []

    def snapshot(loop: TrainLoop) -> None:
        pool = loop.context.models.pool
        states.append(copy.deepcopy(pool.state_dict()))
        counts.append(hooks(pool) + hooks(loop.context.models.student))

    def look(loop: TrainLoop) -> None:
        pool = loop.context.models.pool
        assert not any(module.training for module in pool.teachers.modules() if module is not pool.teachers)
        assert not any(mask.training for mask in pool.masks.values())
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in pool.parameters())

    watch(monkeypatch, "run", snapshot)
    watch(monkeypatch, "run", snapshot, after=True)
    watch(monkeypatch, "update", look)
    train(distill(MODES[mode]), tmp_path)
    before, after = states
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert counts == [0, 0]


def test_teacher_forwards_are_as_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P5: forwards a step: none with a cache, else one a teacher, whatever the number of variants (here three)."""
    forwards: list[int] = []
    rows: list[int] = []

    def start(loop: TrainLoop) -> None:
        for teacher in loop.context.models.pool.teachers.values():
            teacher.network.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))

    watch(monkeypatch, "run", start)
    watch(monkeypatch, "update", lambda loop: forwards.append(loop.context.models.pool.forwards))

    def a_step(stage: dict[str, Any]) -> list[int]:
        forwards.clear()
        rows.clear()
        train(distill(stage | {"monitor": None}), tmp_path, str(len(list(tmp_path.iterdir()))))
        return [later - earlier for earlier, later in pairwise(forwards)]

    assert set(a_step(MODES["cached"])) == {0}
    assert set(a_step(MODES["live, all teachers"])) == {2}
    routed = a_step(MODES["live, rows routed first"])
    assert set(routed) <= {1, 2}


def test_p5_teachers_run_once_a_step_whatever_the_student_computes_again(tmp_path: Path) -> None:
    """P5: a student with activation checkpointing, and gradient caching; numbers are those of the plain student."""
    teachers = {"right": {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12]}}
    stage = {"objectives": ["kd"], "cache": "off", "epochs": 1, "monitor": None}
    student = {"kind": "tiny_checkpointed", "inputs": ["left"]}
    plain = train(simple(stage, student=student, teachers=teachers), tmp_path, "plain")
    chunked = train(simple(stage | {"micro_batch": 8}, student=student, teachers=teachers), tmp_path, "chunked")
    for run, forwards in ((plain, 3), (chunked, 5)):  # 16, 16 and 8 rows: one forward each, or one for 8 rows
        (end,) = run.records("stage_end")
        assert (end["steps"], end["teacher_forwards"]) == (3, forwards)
    assert chunked.records("train")[-1]["losses"] == pytest.approx(plain.records("train")[-1]["losses"], rel=1e-5)


def test_routed_rows_run_once_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P5: of teachers that run on routed rows only."""
    rows: list[int] = []

    def start(loop: TrainLoop) -> None:
        for teacher in loop.context.models.pool.teachers.values():
            teacher.network.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))

    def stop(loop: TrainLoop) -> None:
        for teacher in loop.context.models.pool.teachers.values():
            teacher.network._forward_pre_hooks.clear()

    watch(monkeypatch, "run", start)
    watch(monkeypatch, "finish", stop)
    train(distill({"cache": "off", "objectives": [ROUTED], "epochs": 3}), tmp_path)
    assert sum(rows) == 3 * ALL_ROWS


def test_what_a_stage_says_about_its_teachers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="moekd")
    train(full(), tmp_path)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("stage ")]
    assert said == [
        "stage 'cotrain': teachers run live: teachers or masks train in this stage (right, both)",
        "stage 'specialise': 3 masks train; their teachers are entered at the taps; activations of 2 teachers "
        "cached in memory, 0.0 MB",
        "stage 'specialise': signals of the frozen student cached in memory, 0.0 MB",
        "stage 'distill': logits of 3 teachers cached in memory, 0.0 MB (fp32)",
    ]
