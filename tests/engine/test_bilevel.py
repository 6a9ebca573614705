"""Stages that train the router by held-out labels: the gradient, what stays as it was, stops, processes, mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.program import Program
from moekd.schedules import Progress
from moekd.stages import TrainingStep, WeightedObjective
from moekd.stages.bilevel import BilevelLoop, HeldOut
from moekd.stages.outer_step import router_gradients
from moekd.step import Step
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

from .test_distributed import assert_close, in_two, loaded
from .tiny import FULL, MLP, PowerCutError, cut_after, full, recipe_of, same_weights, simple, train

TEACHER = {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12]}
FUSION = {"gate": {"kind": "fusion_ratio", "hidden": [6]}, "selection": "dense", "combine": "loss", "signal": "bilevel"}
MIXING = {
    "gate": {"kind": "mlp", "on": "logits_and_stats", "detach_input": False, "hidden": 6},
    "selection": {"kind": "top_k", "k": 2},
    "combine": "target",
    "signal": "bilevel",
    "balance": ["z_loss"],
}
NOISY = {
    "gate": {"kind": "linear", "on": "student_logits", "jitter": 0.1},
    "selection": {"kind": "noisy_top_k", "k": 2},
    "combine": "loss",
    "signal": "bilevel",
    "balance": ["importance"],
}
ROUTERS = {"fusion": (FUSION, ["fused_kd_ce"]), "mixing": (MIXING, ["cross_entropy", "routed_kd"])}
ROUTERS["noisy"] = (NOISY, ["cross_entropy", "routed_kd"])


def config(name: str, stage: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a run of six steps, three an epoch, with three frozen teachers and 18 held-out rows."""
    router, objectives = ROUTERS[name]
    bilevel = {"kind": "bilevel", "trains": ["student", "router"], "objectives": objectives, "outer_lr": 0.05}
    teachers = {"a": TEACHER, "b": TEACHER, "c": MLP}
    parts = {"student": MLP, "teachers": teachers, "router": router, "trainer": FULL["trainer"]}
    return simple(bilevel | (stage or {}), **(parts | changes))


def step_of(program: Program) -> tuple[TrainingStep, dict[str, Any], dict[str, Any]]:
    """Return what the stage trains, in double precision, and two batches."""
    phase = program.phases[0]
    models = program.models(phase)
    models.student.double()
    models.router.double()
    split = {name: program.data.split(name).__getitems__(list(range(9))) for name in ("train", "val")}
    for batch in split.values():
        batch.update({key: value.double() for key, value in batch.items() if value.is_floating_point()})
    models.router.gate.fit(models.pool, [split["train"]])
    models.student.train()
    module = TrainingStep(models, phase.stages[0].settings.objectives, variants=models.experts)
    return module, split["train"], split["val"]


def through_everything(
    module: TrainingStep, batch: dict[str, Any], held_out: dict[str, Any], lr: float
) -> list[Tensor]:
    """Return the router's gradient by one graph from the held-out loss through the step into the router."""
    models, router = module.models, module.router
    step = Step(batch, models, variants=module.variants)
    routing = replace(step.routing, hypothetical=True)
    vars(step)["routing"] = routing
    constant = {name: value.detach() for name, value in models.student.named_parameters()}
    theta = {name: value.clone().requires_grad_() for name, value in constant.items()}

    def logits(parameters: dict[str, Tensor], rows: dict[str, Any]) -> Tensor:
        return torch.func.functional_call(models.student, parameters, (rows,)).logits

    vars(step)["student"] = type(step.student)(logits(theta, batch))
    inner = sum(value for w in module.objectives for value in w.terms(step).values())
    slopes = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
    moved = {name: theta[name] - lr * slope for name, slope in zip(theta, slopes, strict=True)}
    outer = torch.nn.functional.cross_entropy(logits(moved, held_out), held_out["label"])
    total = outer + sum(value for value in routing.losses.values())
    return list(torch.autograd.grad(total, list(router.parameters()), allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("name", ["fusion", "mixing"])
def test_the_gradient_is_that_of_the_whole_graph(name: str) -> None:
    router = ROUTERS[name][0] | ({"gate": MIXING["gate"] | {"detach_input": True}} if name == "mixing" else {})
    module, batch, held_out = step_of(recipe_of(config(name, router=router)).build())
    found = router_gradients(module, batch, held_out, Progress(), 0.3, "unroll")
    expected = through_everything(module, batch, held_out, 0.3)
    assert max(value.abs().max() for value in expected) > 1e-6
    for one, other in zip(found.gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
    close = router_gradients(module, batch, held_out, Progress(), 0.3, "darts").gradients
    torch.testing.assert_close(close, found.gradients, rtol=1e-3, atol=1e-7)


def test_without_a_step_only_the_balance_loss_is_left() -> None:
    module, batch, held_out = step_of(recipe_of(config("fusion")).build())
    found = router_gradients(module, batch, held_out, Progress(), 0.0, "unroll")
    assert all(not gradient.any() for gradient in found.gradients)
    module, batch, held_out = step_of(recipe_of(config("mixing")).build())
    routing = Step(batch, module.models, variants=module.variants).routing
    wanted = torch.autograd.grad(routing.losses["balance"], list(module.router.parameters()))
    found = router_gradients(module, batch, held_out, Progress(), 0.0, "unroll")
    torch.testing.assert_close(found.gradients, list(wanted))


@pytest.mark.parametrize("order", ["unroll", "darts"])
def test_an_outer_step_changes_the_router_and_nothing_else(order: str, tmp_path: Path, monkeypatch: Any) -> None:
    raw = full(router=MIXING, baselines={})
    raw["stages"] = [raw["stages"][2] | {"kind": "bilevel", "order": order, "cache": "off"}]
    outer_step, seen = BilevelLoop.outer_step, []

    def watch(loop: BilevelLoop, *arguments: Any) -> Tensor:
        student, router = loop.context.models.student, loop.router
        before = {
            key: value.clone() for key, value in [*student.state_dict().items(), *loop.module.pool.state_dict().items()]
        }
        buffers = {key: value.clone() for key, value in router.named_buffers() if value is not None}
        old, state = [p.clone() for p in router.parameters()], torch.get_rng_state()
        modes = [module.training for module in loop.module.modules()]
        loss = outer_step(loop, *arguments)
        now = {**student.state_dict(), **loop.module.pool.state_dict()}
        assert all(torch.equal(now[key], value) for key, value in before.items())
        assert all(torch.equal(dict(router.named_buffers())[key], value) for key, value in buffers.items())
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in loop.module.modules()] == modes
        assert all(p.grad is None for p in student.parameters())
        assert all(not torch.equal(new, then) for new, then in zip(router.parameters(), old, strict=True))
        seen.append(float(loss))
        return loss

    monkeypatch.setattr(BilevelLoop, "outer_step", watch)
    done = train(raw, tmp_path)
    assert len(seen) == 6
    assert all(np.isfinite(seen))
    logged = [record["losses"]["held_out"] for record in done.records("train")]
    assert min(seen) < np.mean(logged) < max(seen)


def test_live_teachers_run_once_a_step(tmp_path: Path) -> None:
    done = train(config("mixing", {"cache": "off"}), tmp_path)
    assert done.records("stage_end")[0]["teacher_forwards"] == 3 * 6
    cached = train(config("mixing"), tmp_path / "cached")
    assert same_weights(done.weights(), cached.weights()) == []


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("stage", [{}, {"every": 2, "accumulate": 2, "epochs": 4, "order": "darts"}])
def test_a_stopped_run_ends_as_one_that_was_never_stopped(name: str, stage: dict[str, Any], tmp_path: Path) -> None:
    raw = config(name, stage)
    whole = train(raw, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 5)
        with pytest.raises(PowerCutError):
            train(raw, tmp_path / "stopped")
    resumed = train(raw, tmp_path / "stopped", resume="auto")
    assert same_weights(resumed.weights(), whole.weights()) == []
    assert resumed.records() == whole.records()


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    data = {"kind": "tiny", "batch_size": 16, "rows": 41, "labels": 20}
    raw = config("fusion", {"inner_lr": 0.1}, data=data)
    raw["stages"].append(
        config("mixing", data=data)["stages"][0] | {"name": "again", "order": "darts", "inner_lr": 0.1}
    )
    for code, messages in in_two(raw, tmp_path / "two"):
        assert code == 0, messages
    one, two = train(raw, tmp_path / "one"), loaded(raw, tmp_path / "two")
    assert_close(two.records(), one.records(), "record", 1e-4)
    for key, value in one.weights().items():
        np.testing.assert_allclose(two.weights()[key], value, atol=1e-4, rtol=1e-4, err_msg=key)


def test_a_dry_run_accepts_it_and_tells_the_losses() -> None:
    rows = dry_run(recipe_of(config("fusion")).build())
    assert rows[0]["losses"] == ["fused_kd_ce/distillation", "fused_kd_ce/label"]


MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "signal": ({}, {"signal": "task"}, r"trains a router with the signal 'bilevel', found 'task'"),
    "plain stage": (
        {"kind": "train"},
        {},
        r"would not train the router, whose signal is 'bilevel': use kind 'bilevel'",
    ),
    "trains": ({"trains": ["student"]}, {}, r"trains student and router, no more and no less; found \['student'\]"),
    "held out": ({"held_out": "train"}, {}, r"held_out 'train' must have rows, and be another split than 'split'"),
    "test": ({"held_out": "test"}, {}, r"split: 'test' is for the final test"),
    "no split": ({"held_out": "vall"}, {}, r"no split 'vall'; did you mean 'val'"),
    "parameters": ({}, {"gate": "uniform"}, r"the router has no parameters to train"),
    "objective": ({"objectives": ["cross_entropy"]}, {}, r"needs a router and an objective that is routed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found_before_anything_is_trained(mistake: str) -> None:
    stage, router, message = MISTAKES[mistake]
    raw = config("mixing", stage, router=MIXING | router)
    if stage.get("kind") == "train":
        del raw["stages"][0]["outer_lr"]
    with pytest.raises(ConfigError, match=message):
        dry_run(recipe_of(raw).build())


def test_held_out_batches_go_round_in_a_new_order(tmp_path: Path) -> None:
    program = recipe_of(config("mixing", data={"kind": "tiny", "batch_size": 8})).build()
    context = Trainer(program, RunFolder(tmp_path, "run"), quiet=True).context(program.phases[0])
    endless = HeldOut(context, "x", "val", 0)
    passes = [[id_ for _ in range(3) for id_ in endless.next()["id"].tolist()] for _ in range(3)]
    assert all(sorted(ids) == sorted(passes[0]) for ids in passes)
    assert len(passes[0]) == 18
    assert passes[0] != passes[1] != passes[2]
    later = HeldOut(context, "x", "val", 4)
    assert later.next()["id"].tolist() == passes[1][8:16]


def test_weighted_objectives_count_with_their_weight() -> None:
    module, batch, held_out = step_of(recipe_of(config("fusion")).build())
    half = TrainingStep(
        module.models, [WeightedObjective(w.objective, weight=0.5) for w in module.objectives], variants=module.variants
    )
    full_step = router_gradients(module, batch, held_out, Progress(), 0.1, "unroll").gradients
    half_step = router_gradients(half, batch, held_out, Progress(), 0.2, "unroll").gradients
    torch.testing.assert_close(half_step, full_step)
