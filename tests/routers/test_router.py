"""The router: what it returns, whom its losses reach, what it refuses."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError, ModelError
from moekd.model import Model
from moekd.objectives import RoutedKD
from moekd.routers import Dense, DenseInstanceGate, InstanceGate, Router, TopK, UniformGate, kl_to_uniform
from moekd.routers.balances import CoefficientOfVariation, KLToUniform
from moekd.schedules import Progress, StepDecay

from ..builders import (
    CLASSES,
    DenseMaps,
    make_batch,
    make_pool,
    make_router,
    make_step,
    make_student,
    randomise,
    strangers,
)


def gradients(router: Router) -> list[torch.Tensor | None]:
    return [p.grad for p in router.gate.parameters()]


def moved(router: Router) -> bool:
    return all(g is not None and g.abs().max() > 1e-6 for g in gradients(router)[:1])


def test_routing_holds_what_was_decided() -> None:
    step = make_step(strangers(3), make_router(3, k=2, balance=[KLToUniform()]))
    routing = step.routing
    assert routing is step.routed
    torch.testing.assert_close(routing.logits, step.models.router.gate.score(step.student.logits))
    torch.testing.assert_close(routing.probs, routing.logits.softmax(1))
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(6), atol=1e-6, rtol=0)
    assert torch.equal(routing.chosen, routing.logits.topk(2).indices)
    assert list(routing.losses) == ["balance"]
    entropy = -(routing.probs * routing.probs.log()).sum(1).mean()
    torch.testing.assert_close(routing.stats["entropy"], entropy.detach())
    assert not routing.stats["entropy"].requires_grad
    assert (routing.combine, routing.signal, routing.mix) == ("select", "aux_only", "probs")


def test_select_gives_the_gate_no_gradient_from_distillation() -> None:
    """N6: no gradient on undeclared paths."""
    pool, student, router = make_pool("fusion", "vectors"), make_student(), make_router(4)
    for parameter in pool.parameters():
        parameter.requires_grad_(True)
    RoutedKD()(make_step(pool, router, student=student))["routed_kd"].mean().backward()
    assert gradients(router) == [None] * 4
    assert all(p.grad is None for p in pool.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


@pytest.mark.parametrize("k", [2, None])
@pytest.mark.parametrize("combine", ["loss", "target"])
def test_weights_that_count_give_the_gate_a_gradient_and_teachers_none(combine: str, k: int | None) -> None:
    """N5, N6: the declared path, and none to teachers."""
    for variants in (None, []):
        pool, router = strangers(3), make_router(3, k=k, combine=combine)
        for name in pool.names:
            pool.teacher(name).thaw()
        assert router.signal == "kd"
        RoutedKD()(make_step(pool, router, variants=variants))["routed_kd"].mean().backward()
        assert moved(router)
        assert all(p.grad is None for p in pool.parameters())


@pytest.mark.parametrize("signal", ["aux_only", "none"])
@pytest.mark.parametrize("combine", ["loss", "target"])
def test_other_signals_cut_that_gradient(combine: str, signal: str) -> None:
    """N6: another signal cuts it."""
    router = make_router(3, k=None, combine=combine, signal=signal)
    RoutedKD()(make_step(strangers(3), router))["routed_kd"].mean().backward()
    assert gradients(router) == [None] * 4


@pytest.mark.parametrize("detach", [False, True])
def test_balance_loss_reaches_gate_and_student(detach: bool) -> None:
    student = make_student()
    router = make_router(3, balance=[KLToUniform()], gate={"detach_input": detach})
    make_step(strangers(3), router, student=student).routing.losses["balance"].backward()
    assert moved(router)
    reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in student.parameters()]
    assert reached == [not detach] * len(reached)


def test_balance_losses_are_weighted_and_follow_their_schedules() -> None:
    balance = [KLToUniform(StepDecay(2.0, 10, 0.5)), CoefficientOfVariation(0.25)]
    step = make_step(strangers(3), make_router(3, balance=balance), progress=Progress(epoch=10))
    losses = step.routing.losses
    assert list(losses) == ["balance/0", "balance/1"]
    torch.testing.assert_close(losses["balance/0"], kl_to_uniform(step.routing.probs))
    torch.testing.assert_close(losses["balance/1"], 0.25 * balance[1](step.routing))


@pytest.mark.parametrize("options", [{"training": False}, {"signal": "none"}])
def test_no_losses_in_validation_or_without_a_signal(options: dict) -> None:
    signal = options.pop("signal", None)
    router = make_router(3, balance=[KLToUniform()], signal=signal)
    assert make_step(strangers(3), router, **options).routing.losses == {}


def test_task_signal_is_the_cross_entropy_of_the_mixture() -> None:
    pool, router = strangers(3), make_router(3, k=None, combine="loss", signal="task")
    batch = make_batch(6, labelled=[True, True, False, True, False, True])
    step = make_step(pool, router, batch=batch)
    expected = []
    for b in range(6):
        if batch["labelled"][b]:
            probs = [pool(batch)[name].logits[b].softmax(0)[batch["label"][b]] for name in pool.names]
            expected.append(-torch.log(sum(w * p for w, p in zip(step.routing.weights[b], probs, strict=True))))
    loss = step.routing.losses["router_task"]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    loss.backward()
    assert moved(router)
    assert all(p.grad is None for p in pool.parameters())


def test_task_signal_with_nothing_labelled_is_zero() -> None:
    router = make_router(3, k=None, combine="loss", signal="task")
    loss = make_step(strangers(3), router, batch=make_batch(4, labelled=[False] * 4)).routing.losses["router_task"]
    loss.backward()
    assert loss == 0.0
    assert all(g is not None and torch.equal(g, torch.zeros_like(g)) for g in gradients(router))


def test_task_signal_learns_who_is_right() -> None:
    pool, batch = strangers(3), make_batch(24)
    router = make_router(3, k=None, combine="loss", signal="task", gate={"detach_input": True})
    losses = []
    for _ in range(60):
        loss = make_step(pool, router, batch=batch).routing.losses["router_task"]
        losses.append(loss.item())
        for parameter, gradient in zip(
            router.parameters(), torch.autograd.grad(loss, list(router.parameters())), strict=True
        ):
            parameter.data -= 0.02 * gradient
    assert losses[-1] < losses[0]


def test_task_signal_refuses_dense_logits() -> None:
    student = Model(randomise(DenseMaps(), 1), ["image"])
    router = Router(DenseInstanceGate(CLASSES, 1), Dense(), combine="loss", signal="task")
    step = make_step(make_pool("dense", masked=False), router, student=student)
    with pytest.raises(ModelError, match=r"signal 'task' needs one label an instance.*\(6, 1, 4, 8, 8\)"):
        _ = step.routing


def test_needs_teachers_only_for_the_task_signal() -> None:
    assert not make_router(3).needs_teachers
    assert make_router(3, signal="task").needs_teachers


def test_hard_selection_with_the_signal_kd_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"router\.signal: with combine 'select' the weights multiply no loss"):
        make_router(3, combine="select", signal="kd")


def test_more_chosen_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"router\.selection\.k: 4 teachers chosen of 3"):
        _ = make_step(strangers(3), make_router(3, k=4)).routing


def test_a_gate_for_other_teachers_is_refused() -> None:
    step = make_step(strangers(3), Router(InstanceGate(CLASSES, 4), TopK()))
    with pytest.raises(ModelError, match=r"gave scores of shape \(6, 4\); expected \[batch, 3 teachers\]"):
        _ = step.routing


def test_a_router_without_parameters() -> None:
    router = Router(UniformGate(3), TopK(1), [KLToUniform()])
    routing = make_step(strangers(3), router).routing
    assert routing.chosen.tolist() == [[0]] * 6
    torch.testing.assert_close(routing.losses["balance"], torch.zeros(()), atol=1e-6, rtol=0)


def test_autocast_computes_probabilities_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        routing = make_step(strangers(3), make_router(3, k=2, balance=[KLToUniform()])).routing
    assert routing.probs.dtype == routing.weights.dtype == torch.float32
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(6), atol=1e-6, rtol=0)


def test_one_row_is_enough() -> None:
    """N3: a batch of one row."""
    for options in ({"k": 1}, {"k": None, "combine": "target"}, {"k": 3, "combine": "loss"}):
        router = make_router(3, balance=[KLToUniform(), CoefficientOfVariation()], **options)
        step = make_step(strangers(3), router, batch=make_batch(1))
        total = RoutedKD()(step)["routed_kd"].sum() + sum(step.routing.losses.values())
        total.backward()
        assert total.isfinite()
        assert all(p.grad.isfinite().all() for p in router.parameters())


def test_a_single_chosen_teacher_gives_no_gradient_through_its_weight() -> None:
    router = Router(UniformGate(num_teachers=3), TopK(1), combine="loss")
    assert router.signal == "aux_only"
    with pytest.raises(ConfigError, match="the weight of a single chosen teacher is always 1"):
        Router(UniformGate(num_teachers=3), TopK(1), combine="loss", signal="kd")
