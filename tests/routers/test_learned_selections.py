"""Switch-style top-k, temperature, noisy top-k, bias-balanced, expert choice: rows, ties, noise, state, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekd.errors import ConfigError
from moekd.objectives import KD, RoutedKD
from moekd.routers import SELECTIONS, Dense, InstanceGate, Router, TopK
from moekd.routers.balances import Importance, Load, SwitchBalance
from moekd.routers.selections import BiasBalanced, ExpertChoice, NoisyTopK
from moekd.routers.selections.base import Selected
from moekd.routers.selections.expert_choice import taken_rows
from moekd.routers.selections.noisy_top_k import smooth_load
from moekd.schedules import Linear, Progress
from moekd.step import Step

from ..builders import CLASSES, clones, make_batch, make_step, randomise, same_state, snapshot, strangers

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 40), st.integers(0, 9999))


def draw(rows: int, teachers: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(rows, teachers, generator=torch.Generator().manual_seed(seed)) * scale


def run(selection, logits: Tensor, step: Step | None = None) -> Selected:
    found = selection(logits, logits.softmax(1), step)
    return found if isinstance(found, Selected) else Selected(*found)


def step_of(rows: int = 6, **options) -> Step:
    return make_step(strangers(1), batch=make_batch(rows), **options)


def router_with(selection, teachers: int = 3, **options) -> Router:
    return Router(randomise(InstanceGate(CLASSES, teachers), 7), selection, **options)


def check_rows(found: Selected, k: int, sums: bool = True) -> None:
    assert ((found.weights > 0).sum(1) <= k).all()
    inside = torch.zeros_like(found.weights, dtype=torch.bool).scatter(1, found.chosen, True)
    assert (found.weights[~inside] == 0).all()
    assert found.chosen.shape[1] == k
    assert all(len(set(row)) == k for row in found.chosen.tolist())
    if sums:
        torch.testing.assert_close(found.weights.sum(1), torch.ones(len(found.weights)))


# -- top_k and dense -------------------------------------------------------------------------------------------------


def test_switch_keeps_the_probability_and_mixtral_renormalises() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    torch.testing.assert_close(run(TopK(1, "none"), logits).weights, torch.tensor([[0.5, 0.0, 0.0]]))
    torch.testing.assert_close(run(TopK(2, "none"), logits).weights, torch.tensor([[0.5, 0.3, 0.0]]))
    torch.testing.assert_close(run(TopK(2), logits).weights, torch.tensor([[0.625, 0.375, 0.0]]))


def test_a_single_chosen_teacher_trains_the_gate_through_its_probability() -> None:
    router = router_with(TopK(1, "none"), combine="loss")
    assert router.signal == "kd"
    RoutedKD()(make_step(strangers(3), router))["routed_kd"].mean().backward()
    assert router.gate.fc1.weight.grad.abs().sum() > 0


def test_weights_that_do_not_sum_to_one_mix_no_distributions() -> None:
    for selection in (TopK(2, "none"), BiasBalanced(3, normalise="none"), ExpertChoice()):
        with pytest.raises(ConfigError, match=r"router\.combine: 'target' mixes distributions"):
            router_with(selection, combine="target")
        assert not selection.constant_weights


def test_temperature_from_the_mean_to_the_best() -> None:
    logits = draw(5, 4, 0)
    torch.testing.assert_close(run(Dense(1e6), logits).weights, torch.full((5, 4), 0.25), atol=1e-5, rtol=0)
    torch.testing.assert_close(run(Dense(1e-4), logits).weights, run(TopK(1), logits).weights)
    torch.testing.assert_close(run(Dense(2.0), logits).weights, (logits / 2).softmax(1))
    torch.testing.assert_close(run(Dense(2.0), logits).probs, (logits / 2).softmax(1))


def test_temperature_follows_its_schedule_and_reaches_the_router() -> None:
    router = router_with(Dense(Linear(4.0, 2.0)), combine="loss")
    routing = make_step(strangers(3), router, progress=Progress(fraction=0.5)).routing
    torch.testing.assert_close(routing.weights, (routing.logits / 3).softmax(1))
    assert torch.equal(routing.probs, routing.weights)
    with pytest.raises(ConfigError, match="temperature: must stay above 0, found 0"):
        Dense(0.0)
    with pytest.raises(ConfigError, match="temperature: must stay above 0, found 0"):
        run(Dense(Linear(1.0, 0.0)), draw(1, 2, 0), step_of(1, progress=Progress(fraction=1.0)))


# -- noisy top-k -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_noisy_top_k_rows(shape: tuple[int, int, int, float, int]) -> None:
    rows, teachers, k, scale, seed = shape
    k = min(k, teachers)
    logits, selection = draw(rows, teachers, seed, scale), NoisyTopK(CLASSES, teachers, k=k, seed=seed)
    found = run(selection, logits, step_of(rows))
    check_rows(found, k)
    load = found.details["load"]
    assert ((load >= 0) & (load <= 1)).all()
    check_rows(run(selection, logits, step_of(rows, training=False)), k)


def test_without_noise_it_is_top_k() -> None:
    logits, selection = draw(6, 4, 1), NoisyTopK(CLASSES, 4, k=2)
    expected = run(TopK(2), logits)
    silent = NoisyTopK(CLASSES, 4, k=2, scale=0.0)
    frozen = NoisyTopK(CLASSES, 4, k=2).eval()
    for found in (
        run(selection, logits),
        run(selection, logits, step_of(training=False)),
        run(silent, logits, step_of()),
        run(frozen, logits, step_of()),
    ):
        torch.testing.assert_close(found.weights, expected.weights)
        assert torch.equal(found.chosen, expected.chosen)
        assert torch.equal(found.details["load"], (expected.weights > 0).float())
    tied = torch.zeros(64, 33)
    assert run(selection, tied).chosen.tolist() == [[0, 1]] * 64


def test_noise_belongs_to_sample_and_step_and_resumes_exactly() -> None:
    logits, selection = draw(6, 4, 1), NoisyTopK(CLASSES, 4, k=2, scale=4.0)
    first, second = run(selection, logits, step_of()), run(selection, logits, step_of())
    assert not torch.equal(first.weights, second.weights)
    again = NoisyTopK(CLASSES, 4, k=2, scale=4.0)
    again.load_state_dict(selection.state_dict())
    assert torch.equal(run(again, logits, step_of()).weights, run(selection, logits, step_of()).weights)
    fresh, part = NoisyTopK(CLASSES, 4, k=2, scale=4.0), make_step(strangers(1), batch=make_batch(6))
    part.batch = {key: value[2:5] for key, value in part.batch.items()}
    assert torch.equal(run(fresh, logits[2:5], part).weights, first.weights[2:5])


def test_noise_is_standard_normal_times_one_over_the_teachers() -> None:
    batch = make_batch(1) | {"id": torch.arange(4000)}
    logits = torch.zeros(4000, 5, requires_grad=True)
    found = run(NoisyTopK(CLASSES, 5, k=5, scale=2.0), logits, make_step(strangers(1), batch=batch))
    noise = found.weights.log()
    noise = noise - noise.mean(1, keepdim=True)
    assert noise.std().item() == pytest.approx(0.4 * math.sqrt(4 / 5), rel=0.03)
    assert (found.weights.argmax(1).bincount(minlength=5) - 800).abs().max() < 120


def test_known_smooth_load() -> None:
    logits, noisy = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.5, 1.0, 0.2]])
    found = smooth_load(logits, noisy, torch.full((1, 3), 0.5), 1)
    z = [(1.0 - 1.0) / 0.5, (2.0 - 1.5) / 0.5, (0.0 - 1.5) / 0.5]
    phi = [0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z]
    torch.testing.assert_close(found, torch.tensor([phi]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 5), st.integers(0, 9999))
def test_smooth_load_equals_a_loop(rows: int, teachers: int, k: int, seed: int) -> None:
    k = min(k, teachers - 1)
    clean, noisy = draw(rows, teachers, seed).double(), draw(rows, teachers, seed + 1).double()
    std = draw(rows, teachers, seed + 2).double().exp()
    found = smooth_load(clean, noisy, std, k)
    for b in range(rows):
        for t in range(teachers):
            others = sorted((noisy[b, j].item() for j in range(teachers) if j != t), reverse=True)
            z = (clean[b, t].item() - others[k - 1]) / std[b, t].item()
            assert found[b, t].item() == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))), abs=1e-9)


def test_load_and_importance_reach_gate_and_learned_noise() -> None:
    selection = NoisyTopK(CLASSES, 3, k=1, noise="learned")
    router = router_with(selection, balance=[Importance(), Load()])
    torch.testing.assert_close(selection._std(step_of(), torch.zeros(6, 3)), torch.full((6, 3), math.log(2) + 0.01))
    losses = make_step(strangers(3), router).routing.losses
    losses["balance/1"].backward()
    assert router.gate.fc1.weight.grad.abs().sum() > 0
    assert selection.layer.weight.grad.abs().sum() > 0
    assert not router.needs_teachers
    on_teachers = router_with(NoisyTopK(CLASSES, 3, k=1, noise="learned", on="teacher_stats"))
    assert on_teachers.needs_teachers
    make_step(strangers(3), on_teachers).routing.weights.sum().backward()


def test_noise_follows_its_schedule() -> None:
    logits, selection = draw(6, 4, 1), NoisyTopK(CLASSES, 4, k=2, scale=Linear(9.0, 0.0))
    end = run(selection, logits, step_of(progress=Progress(fraction=1.0)))
    assert torch.equal(end.chosen, run(TopK(2), logits).chosen)
    assert not torch.equal(run(selection, logits, step_of()).chosen, end.chosen)


# -- bias-balanced ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_bias_balanced_rows(shape: tuple[int, int, int, float, int]) -> None:
    rows, teachers, k, scale, seed = shape
    k = min(k, teachers)
    logits, selection = draw(rows, teachers, seed, scale), BiasBalanced(teachers, k=k)
    selection.bias.copy_(draw(1, teachers, seed + 1)[0])
    found = run(selection, logits)
    check_rows(found, k)
    affinity = logits.double().sigmoid()
    for b in range(rows):
        order = sorted(range(teachers), key=lambda t: (-(logits[b, t].sigmoid() + selection.bias[t]).item(), t))
        picked = found.chosen[b].tolist()
        values = [(logits[b, t].sigmoid() + selection.bias[t]).item() for t in picked]
        expected = [(logits[b, t].sigmoid() + selection.bias[t]).item() for t in order[:k]]
        assert values == pytest.approx(expected, abs=1e-6)
        total = affinity[b, picked].sum().item()
        for t in picked:
            assert found.weights[b, t].item() == pytest.approx(affinity[b, t].item() / total, abs=1e-4)


def test_weights_do_not_depend_on_the_bias_given_the_choice() -> None:
    logits, selection = torch.tensor([[2.0, 1.0, -3.0]]), BiasBalanced(3, k=2)
    before = run(selection, logits).weights
    selection.bias.copy_(torch.tensor([0.01, -0.02, 0.03]))
    assert torch.equal(run(selection, logits).weights, before)
    selection.bias.copy_(torch.tensor([0.0, 0.0, 2.0]))
    assert run(selection, logits).chosen.tolist() == [[2, 0]]


def test_the_bias_of_busy_teachers_falls() -> None:
    selection = BiasBalanced(3, k=1, rate=0.5)
    logits = torch.tensor([[3.0, 1.0, 0.0]] * 4 + [[0.0, 3.0, 1.0]] * 2)
    run(selection, logits, step_of())
    assert selection.load.tolist() == [4, 2, 0]
    selection.after_step()
    assert selection.bias.tolist() == [-0.5, 0.0, 0.5]
    assert selection.load.tolist() == [0, 0, 0]
    selection.after_step()
    assert selection.bias.tolist() == [-0.5, 0.0, 0.5]


def test_the_bias_balances_a_skewed_load() -> None:
    selection, logits = BiasBalanced(4, k=1, rate=0.01), draw(64, 4, 3) + torch.tensor([2.0, 1.0, 0.0, -1.0])
    step = step_of(64)
    before = run(selection, logits).chosen.flatten().bincount(minlength=4)
    for _ in range(200):
        run(selection, logits, step)
        selection.after_step()
    after = run(selection, logits).chosen.flatten().bincount(minlength=4)
    assert before.max() > 40
    assert after.max() <= 24
    assert after.min() >= 8


def test_the_bias_is_a_buffer_that_evaluation_leaves_alone() -> None:
    selection, logits = BiasBalanced(3, k=1, rate=0.5), draw(6, 3, 0)
    assert not list(selection.parameters())
    before = snapshot(selection)
    run(selection, logits, step_of(training=False))
    run(selection.eval(), logits, step_of())
    selection.after_step()
    assert same_state(selection, before)
    run(selection.train(), logits, step_of())
    again = BiasBalanced(3, k=1, rate=0.5)
    again.load_state_dict(selection.state_dict())
    for one in (selection, again):
        one.after_step()
    assert torch.equal(again.bias, selection.bias)
    assert selection.bias.abs().sum() > 0


def test_bias_balanced_without_normalisation_and_ties() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0]])
    found = run(BiasBalanced(3, k=2, normalise="none"), logits)
    assert found.chosen.tolist() == [[0, 1]]
    assert found.weights.tolist() == [[0.5, 0.5, 0.0]]
    torch.testing.assert_close(found.probs, torch.full((1, 3), 1 / 3))
    low = run(BiasBalanced(3, k=2), torch.full((1, 3), -300.0))
    torch.testing.assert_close(low.weights.sum(1), torch.ones(1))


# -- expert choice ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.floats(0.2, 4), st.integers(0, 9999))
def test_every_teacher_takes_as_many_rows(rows: int, teachers: int, capacity: float, seed: int) -> None:
    probs = draw(rows, teachers, seed).softmax(1)
    taken = taken_rows(probs, capacity)
    count = min(rows, math.ceil(capacity * rows / teachers))
    assert taken.sum(0).tolist() == [count] * teachers
    for t in range(teachers):
        best = sorted(range(rows), key=lambda b: (-probs[b, t].item(), b))[:count]
        assert sorted(taken[:, t].nonzero()[:, 0].tolist()) == sorted(best)
    for normalise in ("none", "topk"):
        found = run(ExpertChoice(capacity, normalise), probs.log())
        for b in range(rows):
            mine = taken[b].nonzero()[:, 0].tolist()
            picked = [t for t in found.chosen[b].tolist() if t >= 0]
            assert sorted(picked) == (mine or list(range(teachers)))
            assert picked == sorted(picked, key=lambda t: (-found.weights[b, t].item(), t)) or not mine
            total = probs[b, mine].sum() if normalise == "topk" else 1.0
            expected = [(probs[b, t] / total).item() if mine else 1 / teachers for t in range(teachers)]
            expected = [v if not mine or t in mine else 0.0 for t, v in enumerate(expected)]
            torch.testing.assert_close(found.weights[b], torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_expert_choice_known_case() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    found = run(ExpertChoice(0.5), probs.log())
    expected = torch.tensor([[0.9, 0.0], [0.5, 0.5], [0.0, 0.7], [0.5, 0.5]])
    torch.testing.assert_close(found.weights, expected)
    assert found.chosen.tolist() == [[0, -1], [0, 1], [1, -1], [0, 1]]
    tied = run(ExpertChoice(1.0), torch.zeros(4, 2))
    torch.testing.assert_close(tied.weights, torch.full((4, 2), 0.5))
    assert taken_rows(torch.full((4, 2), 0.5), 1.0).tolist() == [[True, True]] * 2 + [[False, False]] * 2


@pytest.mark.parametrize("combine", ["select", "loss"])
def test_expert_choice_weights_reach_the_loss(combine: str) -> None:
    for variants in (None, []):
        router = router_with(ExpertChoice(1.0), combine=combine, balance=[SwitchBalance()])
        step = make_step(strangers(3), router, variants=variants)
        loss = RoutedKD()(step)["routed_kd"]
        applied, per_teacher = step.routing.applied_weights, []
        if combine == "select":
            torch.testing.assert_close(applied.sum(1), torch.ones(6))
        for name in ("t0", "t1", "t2"):
            per_teacher.append(KD(name)(make_step(strangers(3)))["kd"])
        torch.testing.assert_close(loss, (applied * torch.stack(per_teacher, 1)).sum(1), rtol=1e-4, atol=1e-4)
        (loss.mean() + step.routing.losses["balance"]).backward()
        assert router.gate.fc1.weight.grad.abs().sum() > 0


# -- all -------------------------------------------------------------------------------------------------------------

ALL = {
    "noisy_top_k": lambda t: NoisyTopK(CLASSES, t, k=min(2, t)),
    "bias_balanced": lambda t: BiasBalanced(t, k=min(2, t)),
    "expert_choice": lambda t: ExpertChoice(normalise="topk"),
    "top_k": lambda t: TopK(min(2, t)),
    "dense": lambda t: Dense(0.5),
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("combine", ["select", "loss", "target"])
def test_identical_teachers_and_a_single_teacher_are_plain_kd(kind: str, combine: str) -> None:
    for pool, count in ((clones(3), 3), (strangers(1), 1)):
        router = router_with(ALL[kind](count), count, combine=combine)
        loss = RoutedKD()(make_step(pool, router))["routed_kd"]
        torch.testing.assert_close(loss, KD("t0")(make_step(pool))["kd"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_permuting_scores_permutes_weights(kind: str) -> None:
    logits, order = draw(6, 4, 5), [3, 1, 0, 2]
    plain = run(ALL[kind](4), logits, step_of(training=False))
    turned = run(ALL[kind](4), logits[:, order], step_of(training=False))
    torch.testing.assert_close(turned.weights, plain.weights[:, order])


@pytest.mark.parametrize("kind", ALL)
def test_evaluation_is_deterministic_and_changes_nothing(kind: str) -> None:
    router = router_with(ALL[kind](3), combine="loss").eval()
    before = snapshot(router)
    first, second = (make_step(strangers(3), router, training=False).routing for _ in range(2))
    assert torch.equal(first.weights, second.weights)
    assert same_state(router, before)


@pytest.mark.parametrize("kind", ALL)
def test_no_gradient_to_teachers(kind: str) -> None:
    pool, router = strangers(3), router_with(ALL[kind](3), combine="loss")
    for name in pool.names:
        pool.teacher(name).thaw()
    RoutedKD()(make_step(pool, router))["routed_kd"].mean().backward()
    assert all(p.grad is None for p in pool.parameters())
    assert router.gate.fc1.weight.grad.abs().sum() > 0


def test_refused_options() -> None:
    for make in (lambda: NoisyTopK(CLASSES, 3, k=0), lambda: BiasBalanced(3, k=0)):
        with pytest.raises(ConfigError, match="at least one teacher must be chosen, found 0"):
            make()
    with pytest.raises(ConfigError, match="capacity: must be above 0"):
        ExpertChoice(0)
    for selection in (NoisyTopK(CLASSES, 3, k=4), BiasBalanced(3, k=4)):
        with pytest.raises(ConfigError, match="4 teachers chosen of 3"):
            run(selection, draw(2, 3, 0), step_of(2))
    assert {"bias_balanced", "expert_choice", "noisy_top_k"} <= set(SELECTIONS.names())
