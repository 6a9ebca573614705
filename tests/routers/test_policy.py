"""The gate that trains itself by a reward: what it sees, its weights, its memory, its updates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.dry_run import dry_run
from moekd.errors import ConfigError, ModelError
from moekd.model import Model
from moekd.objectives import KD, RoutedKD, cross_entropy, kd_kl
from moekd.routers import Dense, Router, UniformGate
from moekd.routers.balances import KLToUniform
from moekd.routers.gates import PolicyGate, label_confidence
from moekd.routers.gates.policy import centred_cosine, reward_weighted, rewards
from moekd.routers.replay import Replay
from moekd.schedules import Progress
from moekd.stages.trainable import parameters_of
from moekd.teachers import Teacher, TeacherPool

from ..builders import CLASSES, Vectors, make_batch, make_step, make_student, randomise, snapshot, strangers
from ..engine.test_distributed import assert_close, in_two, loaded
from ..engine.tiny import FULL, KINDS, MLP, PowerCutError, cut_after, recipe_of, same_weights, simple, train

LABELLED = [True, True, False, True, False, True]
LATER = Progress(epoch=1, fraction=0.5)


def router_of(teachers: int, **options: Any) -> Router:
    gate = PolicyGate(CLASSES, teachers, hidden=8, **options)
    randomise(gate, 3, 0.2)
    return Router(gate, Dense(), combine="loss")


def step_of(teachers: int = 3, progress: Progress = LATER, **options: Any):
    batch = make_batch(6, labelled=LABELLED)
    return make_step(strangers(teachers), router_of(teachers, **options), batch=batch, progress=progress)


def test_the_state_by_a_loop() -> None:
    step = step_of(temperature=2.0)
    gate, pool = step.models.router.gate, step.pool
    seen, known = gate.observe(step)
    assert known.tolist() == LABELLED
    for b in range(6):
        s = step.student.logits[b]
        for t, name in enumerate(pool.names):
            z = pool(step.batch)[name].logits[b]
            centred = [v - v.mean() for v in (s, z)]
            cosine = (centred[0] * centred[1]).sum() / (centred[0].norm() * centred[1].norm())
            ce = -z.log_softmax(0)[step.batch["label"][b]] if LABELLED[b] else torch.tensor(0.0)
            torch.testing.assert_close(seen.likeness[b, t], cosine)
            torch.testing.assert_close(seen.distance[b, t], kd_kl(s[None], z[None], 2.0)[0])
            torch.testing.assert_close(seen.loss[b, t], ce)
    assert seen.flat().shape == (6, 3 * (3 + CLASSES))
    assert not seen.flat().requires_grad


@pytest.mark.parametrize("mixture", ["average", "learned"])
def test_weights_mix_policy_confidence_and_distance(mixture: str) -> None:
    step = step_of(mixture=mixture)
    gate = step.models.router.gate
    seen, _ = gate.observe(step)
    policy = (torch.relu(seen.flat() @ gate.trunk.weight.T) @ gate.head.weight.T + gate.head.bias).softmax(1)
    shares = [1 / 3] * 3 if gate.mixture is None else gate.mixture.softmax(0).tolist()
    parts = [policy, label_confidence(seen.loss), seen.distance.softmax(1)]
    expected = sum(m * part for m, part in zip(shares, parts, strict=True))
    torch.testing.assert_close(step.routing.weights, expected)
    torch.testing.assert_close(step.routing.weights.sum(1), torch.ones(6))
    assert not step.routing.weights.requires_grad
    assert step.routing.signal == "policy"
    assert step.routing.losses == {}


def test_known_weights_of_the_two_formulas() -> None:
    gate = PolicyGate(2, 3)
    with torch.no_grad():
        gate.trunk.weight.zero_()
        gate.head.bias.zero_()
    state = torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.1, 0.5, 2.0, *[0.0] * 6]])
    confidence = torch.tensor([0.4455, 0.4187, 0.1358])
    distance = torch.tensor([0.0900, 0.2447, 0.6652])
    expected = (1 / 3 + confidence + distance) / 3
    torch.testing.assert_close(gate.weights(state)[0], expected, atol=1e-4, rtol=0)


def test_the_first_epoch_is_equal_but_not_in_validation() -> None:
    first = step_of(progress=Progress())
    torch.testing.assert_close(first.routing.weights, torch.full((6, 3), 1 / 3))
    validated = make_step(first.pool, first.models.router, batch=first.batch, training=False)
    assert not torch.allclose(validated.routing.weights, torch.full((6, 3), 1 / 3))
    assert first.models.router.gate.replay.batches == 1


def test_one_teacher_is_plain_distillation() -> None:
    step = step_of(1)
    torch.testing.assert_close(RoutedKD()(step)["routed_kd"], KD()(make_step(step.pool, batch=step.batch))["kd"])


def test_what_is_remembered_is_state_and_reward() -> None:
    step = step_of()
    routing, gate = step.routing, step.models.router.gate
    (rows,) = gate.replay.chunks(100)
    seen, known = gate.observe(step)
    assert torch.equal(rows[:, :-1], seen.flat())
    losses = (routing.weights * seen.distance).sum(1)
    losses = losses + cross_entropy(step.student.logits, step.batch["label"].clamp_min(0)).where(known, 0.0)
    standard = -(losses - losses[known].mean()) / losses[known].std()
    torch.testing.assert_close(rows[:, -1], standard.clamp(0, 1).where(known, 0.0), atol=1e-5, rtol=1e-5)
    assert rows[:, -1].max() > 0


def test_nothing_is_remembered_where_the_router_does_not_train() -> None:
    for training in (True, False):
        step = make_step(strangers(3), router_of(3), training=training)
        step.models.router.train(not training)
        _ = step.routing
        assert step.models.router.gate.replay.batches == 0


@pytest.mark.parametrize("mixture", ["average", "learned"])
def test_a_replay_is_gradient_descent_in_order(mixture: str) -> None:
    router = router_of(3, replay_batch=4, mixture=mixture)
    twin = router_of(3, replay_batch=4, mixture=mixture)
    gate, other = router.gate, twin.gate
    for seed in range(2):
        _ = make_step(strangers(3), router, batch=make_batch(5, seed), progress=LATER).routing
    rows = torch.cat(list(gate.replay.chunks(3)))
    assert len(rows) == 10
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for chunk in rows.split(4):
        weights, ones = other.weights(chunk[:, :-1]), torch.ones(len(chunk), 3)
        reward = chunk[:, -1:].expand(-1, 3)
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy(weights, ones, weight=reward).backward()
        optimizer.step()
    before = snapshot(gate)
    router.after_epoch()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(dict(gate.named_parameters())[name], parameter)
        assert not torch.equal(before[name], parameter)
    assert gate.replay.batches == 0
    assert not gate.replay.memory.any()
    assert list(gate.replay.chunks(4)) == []


def test_replays_come_every_few_batches() -> None:
    router = router_of(3, agent_step=3)
    counts = []
    for _ in range(7):
        _ = make_step(strangers(3), router, progress=LATER).routing
        router.after_step()
        counts.append(router.gate.replay.batches)
    assert counts == [1, 2, 0, 1, 2, 0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 9), max_size=8), st.integers(1, 5))
def test_the_memory_keeps_the_newest_rows_in_order(size: int, batches: list[int], chunk: int) -> None:
    replay, everything = Replay(size, 2), []
    for number, rows in enumerate(batches):
        values = torch.arange(2 * rows).view(rows, 2) + 100.0 * number
        everything += values.tolist()
        replay.add(values)
    found = [row for part in replay.chunks(chunk) for row in part.tolist()]
    assert found == everything[-size:]
    assert replay.batches == len(batches)
    again = Replay(size, 2)
    again.load_state_dict(snapshot(replay))
    assert [row for part in again.chunks(chunk) for row in part.tolist()] == found
    again.add(torch.ones(1, 2))
    assert [row for part in again.chunks(chunk) for row in part.tolist()] == [*everything, [1.0, 1.0]][-size:]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 999))
def test_rewards_are_bounded_and_fall_with_the_loss(rows: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    losses, known = torch.randn(rows, generator=rng), torch.rand(rows, generator=rng) > 0.3
    found = rewards(losses, known)
    assert ((found >= 0) & (found <= 1)).all()
    assert not found[~known].any()
    if known.sum() < 2:
        assert not found.any()
    order = losses[known].argsort()
    assert (found[known][order].diff() <= 1e-6).all()
    torch.testing.assert_close(rewards(3 * losses + 2, known), found, atol=1e-4, rtol=1e-3)


def test_the_reward_draws_weights_towards_equal_ones() -> None:
    even, uneven = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    one = torch.ones(1)
    assert reward_weighted(even, one) < reward_weighted(uneven, one)
    assert reward_weighted(uneven, 0 * one) == 0
    torch.testing.assert_close(reward_weighted(even, one), torch.tensor(np.log(2.0)).float())


def test_the_cosine_ignores_shift_and_scale() -> None:
    student = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    teachers = torch.stack([3 * student + 1, -student], dim=1)
    torch.testing.assert_close(centred_cosine(student, teachers), torch.tensor([[1.0, -1.0]]).expand(4, 2))


def test_taps_compare_features() -> None:
    pool = TeacherPool(
        {f"t{i}": Teacher(randomise(Vectors(10), i), ["right"], ["fc2"], name=f"t{i}") for i in range(2)}
    )
    student = Model(make_student().network, ["left"], ["fc1"])
    router = router_of(2, taps={"student": "fc1", "t0": "fc2", "t1": "fc2"})
    step = make_step(pool, router, student=student, features=True, progress=LATER)
    seen, _ = router.gate.observe(step)
    theirs = step.expert_signals["t1"].features["fc2"]
    expected = torch.nn.functional.cosine_similarity(step.student.features["fc1"], theirs, dim=1)
    torch.testing.assert_close(seen.likeness[:, 1], expected)
    assert router.reads_features
    with pytest.raises(ModelError, match="needs tap 'fc3', which the model does not have"):
        router_of(2, taps={"student": "fc3"}).gate.observe(step)
    with pytest.raises(ModelError, match="needs tap ''"):
        router_of(2, taps={"student": "fc1", "t0": "fc2"}).gate.observe(step)


def test_no_optimizer_of_a_stage_gets_its_parameters() -> None:
    router, student = router_of(3), make_student()
    assert parameters_of([student, router]) == list(student.parameters())


def test_refused() -> None:
    gate = PolicyGate(CLASSES, 2)
    with pytest.raises(ConfigError, match="PolicyGate trains itself by a reward; use 'policy', not 'task'"):
        Router(gate, Dense(), combine="loss", signal="task")
    with pytest.raises(ConfigError, match="'policy' needs a gate that trains itself"):
        Router(UniformGate(2), Dense(), combine="loss", signal="policy")
    with pytest.raises(
        ConfigError, match=r"no loss reaches PolicyGate, which trains itself; remove the balance losses"
    ):
        Router(gate, Dense(), [KLToUniform()], combine="loss")
    with pytest.raises(ConfigError, match="would be ignored; use combine 'loss'"):
        Router(gate, Dense())


# -- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _tiny_kinds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, cls in KINDS:
            patch.setitem(registry._members, name, cls)
        yield


def config(gate: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a run of nine steps, three an epoch, in which the gate learns every two batches."""
    stage = {"trains": ["student", "router"], "objectives": ["cross_entropy", "routed_kd"], "epochs": 3}
    teachers = {"a": {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12], "taps": ["fc1"]}}
    teachers["b"] = MLP | {"taps": ["fc1"]}
    settings = {"kind": "policy", "hidden": 8, "agent_step": 2, "replay_batch": 16, "replay_rows": 64} | (gate or {})
    router = {"gate": settings, "selection": "dense", "combine": "loss"}
    parts = {"student": MLP | {"taps": ["fc1"]}, "teachers": teachers, "router": router, "trainer": FULL["trainer"]}
    return simple(stage, **(parts | changes))


@pytest.mark.parametrize(
    "gate", [{"agent_step": 5, "mixture": "learned"}, {"taps": {"student": "fc1", "a": "fc1", "b": "fc1"}}]
)
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_stopped_run_ends_as_one_that_was_never_stopped(gate: dict[str, Any], steps: int, tmp_path: Path) -> None:
    raw = config(gate)
    whole = train(raw, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, steps)
        with pytest.raises(PowerCutError):
            train(raw, tmp_path / "stopped")
    resumed = train(raw, tmp_path / "stopped", resume="auto")
    assert same_weights(resumed.weights(), whole.weights()) == []
    assert resumed.records() == whole.records()
    assert len(whole.results["routing"]["shares"]) == 2


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    raw = config({"mixture": "learned"}, data={"kind": "tiny", "batch_size": 16, "rows": 41, "labels": 20})
    for code, messages in in_two(raw, tmp_path / "two"):
        assert code == 0, messages
    one, two = train(raw, tmp_path / "one"), loaded(raw, tmp_path / "two")
    assert_close(two.records(), one.records(), "record", 1e-4)
    start = recipe_of(raw).build().phases[0].router.gate.head.weight
    assert not torch.allclose(one.program.phases[0].router.gate.head.weight, start)
    for key, value in one.weights().items():
        np.testing.assert_allclose(two.weights()[key], value, atol=1e-4, rtol=1e-4, err_msg=key)


def test_a_dry_run_leaves_no_trace() -> None:
    program = recipe_of(config()).build()
    rows = dry_run(program)
    replay = program.phases[0].router.gate.replay
    assert (replay.batches, replay.filled) == (0, 0)
    assert not replay.memory.any()
    student = sum(p.numel() for p in program.phases[0].student.parameters())
    assert rows[0]["trainable"] == student


def test_a_stage_that_trains_the_policy_alone_is_refused() -> None:
    raw = config()
    raw["stages"][0]["trains"] = ["router"]
    with pytest.raises(ConfigError, match="nothing to train"):
        dry_run(recipe_of(raw).build())
