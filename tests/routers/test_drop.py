"""Teacher dropping: the extreme one always stays, the others by chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError
from moekd.objectives import KD, RoutedKD, kd_kl
from moekd.routers import SELECTIONS, Drop, Router, UniformGate
from moekd.routers.gates import MismatchGate

from ..builders import clones, make_batch, make_router, make_step, snapshot, strangers


def route(drop: Drop, pool=None, combine: str = "loss", **options):
    return make_step(pool or strangers(3), Router(MismatchGate(), drop, combine=combine), **options)  # type: ignore[arg-type]


def loss(step) -> torch.Tensor:
    return RoutedKD()(step)["routed_kd"]


def distances(step) -> torch.Tensor:
    return torch.stack([kd_kl(step.student.logits, step.teachers[n].logits, 4.0) for n in step.teachers], 1).detach()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0, 1), st.sampled_from(["row", "all"]), st.integers(0, 9999))
def test_weights_on_random_shapes(rows: int, teachers: int, p: float, normalise: str, seed: int) -> None:
    logits = torch.randn(rows, teachers, generator=torch.Generator().manual_seed(seed))
    step = make_step(strangers(1), batch=make_batch(rows))
    drop = Drop(p, normalise=normalise, seed=seed)  # type: ignore[arg-type]
    weights, chosen = drop(logits, logits.softmax(1), step)
    assert chosen is not None
    kept = chosen >= 0
    assert torch.equal(kept, weights > 0)
    assert torch.equal(chosen[kept], torch.arange(teachers).expand(rows, -1)[kept])
    assert kept[torch.arange(rows), logits.argmax(1)].all()
    if normalise == "row":
        torch.testing.assert_close(weights.sum(1), torch.ones(rows))
        assert all(row[row > 0].unique().numel() == 1 for row in weights)
    else:
        torch.testing.assert_close(weights.sum(), torch.tensor(float(rows)))
        assert weights[weights > 0].unique().numel() == 1


@pytest.mark.parametrize("combine", ["select", "loss"])
def test_nothing_dropped_is_the_mean_over_teachers(combine: str) -> None:
    mean = KD()(make_step(strangers(3)))["kd"]
    torch.testing.assert_close(loss(route(Drop(0.0), combine=combine)), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss(route(Drop(0.9), combine=combine, training=False)), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", ["highest", "lowest"])
@pytest.mark.parametrize("combine", ["select", "loss", "target"])
def test_everybody_dropped_but_the_kept_one(keep: str, combine: str) -> None:
    step = route(Drop(1.0, keep=keep), combine=combine)  # type: ignore[arg-type]
    far = distances(step)
    expected = far.max(1).values if keep == "highest" else far.min(1).values
    torch.testing.assert_close(loss(step), expected, rtol=1e-4, atol=1e-4)


def test_all_is_the_mean_over_the_kept_pairs() -> None:
    step = route(Drop(0.5, normalise="all"))
    kept = step.routing.chosen >= 0
    assert 6 < kept.sum() < 18
    torch.testing.assert_close(loss(step).mean(), distances(step)[kept].mean(), rtol=1e-4, atol=1e-4)


def test_row_is_the_mean_of_the_means_of_the_rows() -> None:
    step = route(Drop(0.5))
    kept = step.routing.chosen >= 0
    expected = [distances(step)[b, kept[b]].mean() for b in range(6)]
    torch.testing.assert_close(loss(step), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_the_others_drop_out_with_probability_p() -> None:
    rows, drop = 4000, Drop(0.3)
    logits = torch.zeros(rows, 4) + torch.tensor([0.0, 3.0, 1.0, 2.0])
    step = make_step(strangers(1), batch=make_batch(rows))
    kept = drop(logits, logits.softmax(1), step)[1] >= 0
    torch.testing.assert_close(kept.double().mean(0), torch.tensor([0.7, 1.0, 0.7, 0.7]).double(), atol=0.03, rtol=0)


@pytest.mark.parametrize("combine", ["select", "loss", "target"])
def test_identical_teachers_and_a_single_one_are_plain_kd(combine: str) -> None:
    for pool in (clones(3), strangers(1)):
        plain = KD("t0")(make_step(pool))["kd"]
        torch.testing.assert_close(loss(route(Drop(0.5), pool, combine)), plain, rtol=1e-4, atol=1e-4)


def test_state_resumes_exactly_and_two_processes_choose_as_one() -> None:
    batch, whole, halves = make_batch(8), Drop(0.5), [Drop(0.5), Drop(0.5)]
    for _ in range(3):
        one = route(whole, batch=batch).routing.chosen
        parts = [
            route(drop, batch={k: v[4 * i : 4 * i + 4] for k, v in batch.items()}).routing.chosen
            for i, drop in enumerate(halves)
        ]
        assert torch.equal(torch.cat(parts), one)
    resumed = Drop(0.5)
    resumed.load_state_dict(snapshot(whole))
    assert torch.equal(route(resumed, batch=batch).routing.chosen, route(whole, batch=batch).routing.chosen)


def test_any_gate_can_say_who_stays() -> None:
    router = make_router(3, combine="loss")
    router = Router(router.gate, Drop(1.0), combine="loss")
    step = make_step(strangers(3), router, variants=[])
    assert not router.needs_teachers
    best = step.routing.logits.argmax(1)
    torch.testing.assert_close(loss(step), distances(step)[torch.arange(6), best], rtol=1e-4, atol=1e-4)
    assert not step.routing.weights.requires_grad


def test_teachers_run_on_kept_rows_only_and_give_the_same_loss() -> None:
    few = make_step(strangers(3), Router(UniformGate(3), Drop(0.5), combine="loss"), variants=[])
    all_ = make_step(strangers(3), Router(UniformGate(3), Drop(0.5), combine="loss"))
    torch.testing.assert_close(loss(few), loss(all_), rtol=1e-4, atol=1e-4)


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r"router\.selection\.p: a probability is between 0 and 1, found 1\.5"):
        Drop(1.5)
    with pytest.raises(ConfigError, match="'target' mixes distributions with weights that sum to 1"):
        route(Drop(normalise="all"), combine="target")
    with pytest.raises(ConfigError, match=r"the weights of rows of Drop would be ignored"):
        route(Drop(normalise="all"), combine="select")
    with pytest.raises(ConfigError, match=r"router\.signal: the weights of Drop are constants"):
        Router(MismatchGate(), Drop(), combine="loss", signal="kd")


def test_registered() -> None:
    assert SELECTIONS.get("drop") is Drop
    assert set(SELECTIONS.parameters("drop")) == {"p", "keep", "normalise", "seed"}
