"""Labels as the teacher of a gate: the signals `task` and `oracle`, and the objective that does nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError, ModelError
from moekd.model import Model
from moekd.objectives import RouteOnly, mixed_teacher
from moekd.routers import Dense, DenseInstanceGate, Router
from moekd.routers.supervision import oracle_loss, task_loss

from ..builders import CLASSES, DenseMaps, clones, make_batch, make_pool, make_router, make_step, randomise, strangers

LABELLED = [True, True, False, True, False, True]


def losses_of(step) -> torch.Tensor:
    """Return the teachers' cross-entropies by a loop, `[B, T]`."""
    signals = step.expert_signals
    return torch.stack([torch.nn.functional.cross_entropy(signals[n].logits, step.batch["label"].clamp_min(0),
                                                          reduction="none") for n in signals], dim=1)  # fmt: skip


@pytest.mark.parametrize("mix", ["probs", "logits"])
def test_the_task_loss_is_the_cross_entropy_of_what_target_mixes(mix: str) -> None:
    router = make_router(3, k=None, combine="target", signal="task", mix=mix)
    step = make_step(strangers(3), router, batch=make_batch(6, labelled=LABELLED))
    mixed = mixed_teacher(step.expert_signals.logits, step.routing.weights, mix).logits
    rows = torch.tensor(LABELLED)
    expected = torch.nn.functional.cross_entropy(mixed[rows], step.batch["label"][rows])
    loss = step.routing.losses["router_task"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad.abs().max() > 1e-6 for p in router.gate.parameters())
    assert all(p.grad is None for p in step.pool.parameters())


def test_mixing_logits_and_probabilities_differ_and_agree_on_clones() -> None:
    for pool, same in ((strangers(3), False), (clones(3), True)):
        losses = [
            make_step(pool, make_router(3, k=None, combine="loss", signal="task", mix=mix)).routing.losses
            for mix in ("probs", "logits")
        ]
        assert torch.allclose(losses[0]["router_task"], losses[1]["router_task"], atol=1e-5) == same


@pytest.mark.parametrize("tau", [None, 0.5])
def test_the_oracle_loss_by_a_loop(tau: float | None) -> None:
    router = make_router(3, signal="oracle", oracle_tau=tau)
    step = make_step(strangers(3), router, batch=make_batch(6, labelled=LABELLED))
    scores, losses, expected = step.routing.logits, losses_of(step), []
    for b in range(6):
        if LABELLED[b]:
            log_probs = scores[b].log_softmax(0)
            if tau is None:
                expected.append(-log_probs[losses[b].argmin()])
            else:
                expected.append(-((-losses[b] / tau).softmax(0) * log_probs).sum())
    loss = step.routing.losses["router_oracle"]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert not router.training or router.needs_teachers
    loss.backward()
    assert all(p.grad.abs().max() > 1e-6 for p in router.gate.parameters())
    assert all(p.grad is None for p in step.pool.parameters())


def test_equal_teachers_make_the_first_one_the_target() -> None:
    step = make_step(clones(3))
    scores = torch.tensor([[0.0, 1.0, 2.0]]).expand(6, 3)
    torch.testing.assert_close(oracle_loss(step, scores), -scores.log_softmax(1)[0, 0])
    torch.testing.assert_close(oracle_loss(step, scores, 1.0), -scores.log_softmax(1)[0].mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 999))
def test_a_small_temperature_is_hard_and_a_large_one_uniform(teachers: int, rows: int, seed: int) -> None:
    step = make_step(strangers(teachers), batch=make_batch(rows, seed))
    scores = torch.randn(rows, teachers, generator=torch.Generator().manual_seed(seed))
    best = losses_of(step).sort(dim=1).values
    if teachers == 1 or (best[:, 1] - best[:, 0]).min() > 1e-3:
        torch.testing.assert_close(oracle_loss(step, scores, 1e-5), oracle_loss(step, scores))
    torch.testing.assert_close(oracle_loss(step, scores, 1e6), -scores.log_softmax(1).mean(), rtol=1e-4, atol=1e-4)
    assert oracle_loss(step, scores) >= 0
    assert task_loss(step, scores.softmax(1)) >= best[:, 0].mean() - 1e-5


@pytest.mark.parametrize("signal", ["task", "oracle"])
def test_nothing_labelled_is_zero_with_zero_gradient(signal: str) -> None:
    router = make_router(3, k=None, combine="target", signal=signal, mix="logits")
    batch = make_batch(4, labelled=[False] * 4)
    loss = make_step(strangers(3), router, batch=batch).routing.losses[f"router_{signal}"]
    loss.backward()
    assert loss == 0.0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in router.gate.parameters())


def test_the_oracle_signal_learns_who_is_best() -> None:
    pool, batch = strangers(3), make_batch(24)
    router = make_router(3, signal="oracle", gate={"detach_input": True})
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = make_step(pool, router, batch=batch).routing.losses["router_oracle"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_route_only_has_no_loss_and_routes() -> None:
    router = make_router(3, k=None, combine="loss", signal="task")
    step = make_step(strangers(3), router)
    assert RouteOnly()(step) == {}
    assert step.routed is not None
    assert list(step.routed.losses) == ["router_task"]
    assert RouteOnly.routable


def test_refused() -> None:
    student = Model(randomise(DenseMaps(), 1), ["image"])
    router = Router(DenseInstanceGate(CLASSES, 1), Dense(), combine="loss", signal="oracle")
    with pytest.raises(ModelError, match=r"signal 'oracle' needs one label an instance.*\(6, 1, 4, 8, 8\)"):
        _ = make_step(make_pool("dense", masked=False), router, student=student).routing
    for options in ({"oracle_tau": 1.0}, {"signal": "oracle", "oracle_tau": 0.0}):
        with pytest.raises(ConfigError, match=r"router\.oracle_tau: soft targets of the signal 'oracle'"):
            make_router(3, **options)
