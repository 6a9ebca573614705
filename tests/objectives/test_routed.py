"""Routed objectives: combining, mixing, running teachers on their rows only."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from moekd.model import Model
from moekd.objectives import KD, PairwiseObjective, RoutedKD, RoutedObjective, kd_kl, mixed_teacher
from moekd.routers import DenseInstanceGate, Router, TopK
from moekd.signals import Signals
from moekd.teachers import TeacherPool

from ..builders import (
    CLASSES,
    DenseMaps,
    make_batch,
    make_pool,
    make_router,
    make_step,
    make_student,
    make_teacher,
    randomise,
    strangers,
)


class LabelGap(PairwiseObjective):
    """Squared distance of the probabilities of the label: reads logits, batch and, to be routed, features."""

    logits_only = False

    def pair(self, student: Signals, teacher: Signals, batch: Mapping) -> Tensor:
        label = batch["label"][:, None]
        mine, other = (s.require_logits("gap").softmax(1).gather(1, label)[:, 0] for s in (student, teacher))
        return (mine - other).square()


@pytest.mark.parametrize("k", [1, 2, None])
def test_weights_multiply_the_losses(k: int | None) -> None:
    step = make_step(strangers(3), make_router(3, k=k, combine="loss"))
    student, weights = step.student.logits, step.routing.weights
    expected = sum(weights[:, t] * kd_kl(student, s.logits) for t, s in enumerate(step.teachers.values()))
    torch.testing.assert_close(RoutedKD()(step)["routed_kd"], expected)


@pytest.mark.parametrize("mix", ["probs", "logits"])
def test_target_is_compared_once(mix: str) -> None:
    step = make_step(strangers(3), make_router(3, k=None, combine="target", mix=mix))
    weights, logits = step.routing.weights[:, :, None], step.teachers.logits
    targets = {"logits": (weights * logits).sum(1), "probs": 4 * (weights * (logits / 4).softmax(2)).sum(1).log()}
    expected = kd_kl(step.student.logits, targets[mix])
    torch.testing.assert_close(RoutedKD()(step)["routed_kd"], expected, rtol=1e-4, atol=1e-5)


def test_mixed_teacher_has_the_mixed_distribution() -> None:
    logits, weights = torch.randn(5, 3, 4), torch.randn(5, 3).softmax(1)
    mixed = mixed_teacher(logits, weights, "probs", 2.0).logits
    torch.testing.assert_close((mixed / 2).softmax(1), (weights[:, :, None] * (logits / 2).softmax(2)).sum(1))
    torch.testing.assert_close(mixed_teacher(logits, weights, "logits").logits, (weights[:, :, None] * logits).sum(1))


def test_mixed_teacher_of_dense_logits() -> None:
    logits, weights = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3).softmax(1)
    mixed = mixed_teacher(logits, weights, "probs", 2.0).logits
    assert mixed.shape == (2, 4, 5, 6)
    torch.testing.assert_close(mixed[:, :, 1, 2], mixed_teacher(logits[..., 1, 2], weights, "probs", 2.0).logits)


@pytest.mark.parametrize("mix", ["probs", "logits"])
def test_mixed_teacher_with_weights_of_zero_and_extreme_logits(mix: str) -> None:
    """N3, N4: rows whose weights are 0."""
    logits = (torch.tensor([[[1e4, -1e4], [-1e4, 1e4]], [[3.0, 1.0], [0.0, 2.0]]])).requires_grad_()
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    mixed = mixed_teacher(logits, weights, mix, 0.5).logits
    torch.testing.assert_close((mixed / 0.5).softmax(1), (logits[[0, 1], [1, 0]] / 0.5).softmax(1))
    kd_kl(torch.zeros(2, 2), mixed, 0.5).sum().backward()
    assert logits.grad.isfinite().all()
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("mix", ["probs", "logits"])
def test_mixed_teacher_in_double_precision(mix: str) -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, s: mixed_teacher(z, s.softmax(1), mix, 2.0).logits, (logits, scores))


@pytest.mark.parametrize("sharing", ["auto", "replicate"])
@pytest.mark.parametrize("stacking", ["independent", "cumulative"])
@pytest.mark.parametrize(("k", "combine"), [(1, "select"), (2, "select"), (1, "loss"), (3, "loss")])
def test_running_rows_only_gives_the_same_loss_and_gradients(k: int, combine: str, stacking: str, sharing: str) -> None:
    pool, batch = make_pool("fusion", "vectors", mask_stacking=stacking, sharing=sharing), make_batch(9)
    results = []
    for variants in (None, []):
        student, router = make_student(), make_router(4, k=k, combine=combine)
        step = make_step(pool, router, batch, student, variants=variants)
        assert step.routes_rows_first == (variants == [])
        loss = RoutedKD()(step)["routed_kd"]
        loss.mean().backward()
        results.append([loss.detach(), *[p.grad for p in [*student.parameters(), *router.parameters()]]])
    for stacked, by_rows in zip(*results, strict=True):
        assert (stacked is None) == (by_rows is None)
        if stacked is not None:
            torch.testing.assert_close(by_rows, stacked, rtol=1e-4, atol=1e-5)


def test_running_rows_only_forwards_each_chosen_teacher_once() -> None:
    pool, seen = make_pool("fusion", "vectors", sharing="prefix"), {}
    for name in pool.names:
        pool.teacher(name).network.register_forward_pre_hook(lambda m, a, name=name: seen.update({name: len(a[0])}))
    step = make_step(pool, make_router(4), make_batch(12), variants=[])
    RoutedKD()(step)
    counts = step.routing.chosen[:, 0].bincount(minlength=4)
    expected = {"fusion": int(counts[:2].sum()), "vectors": int(counts[2:].sum())}
    assert seen == {name: count for name, count in expected.items() if count}
    assert pool.forwards == len(seen)


def test_a_teacher_that_nobody_chose_does_not_run() -> None:
    pool, router = strangers(3), make_router(3)
    with torch.no_grad():
        router.gate.fc2.bias.copy_(torch.tensor([0.0, 1e3, 0.0]))
    loss = RoutedKD()(make_step(pool, router, variants=[]))["routed_kd"]
    assert pool.forwards == 1
    torch.testing.assert_close(loss, KD("t1")(make_step(pool))["kd"])


@pytest.mark.parametrize("variants", [None, []])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_any_pairwise_objective_can_be_routed(k: int, variants: list[str] | None) -> None:
    step = make_step(strangers(3), make_router(3, k=k), variants=variants)
    loss = RoutedObjective(LabelGap())(step)["routed"]
    terms = [LabelGap().pair(step.student, s, step.batch) for s in step.pool(step.batch).values()]
    expected = (step.routing.applied_weights * torch.stack(terms, dim=1)).sum(1)
    torch.testing.assert_close(loss, expected)


def test_dense_logits_are_routed_by_image() -> None:
    pool = TeacherPool({f"t{i}": make_teacher("dense", f"t{i}", i) for i in range(2)})
    student = Model(randomise(DenseMaps(), 9), ["image"])
    losses = []
    for variants in (None, []):
        router = Router(randomise(DenseInstanceGate(CLASSES, 2), 3), TopK(1))
        step = make_step(pool, router, student=student, variants=variants)
        losses.append(RoutedKD()(step)["routed_kd"])
        for b, t in enumerate(step.routing.chosen[:, 0].tolist()):
            alone = kd_kl(step.student.logits[b : b + 1], pool(step.batch)[f"t{t}"].logits[b : b + 1])
            torch.testing.assert_close(losses[-1][b], alone[0])
    torch.testing.assert_close(losses[0], losses[1])


def test_temperature_is_the_one_of_the_pair() -> None:
    step = make_step(strangers(1), make_router(1))
    torch.testing.assert_close(
        RoutedKD(2.0)(step)["routed_kd"], kd_kl(step.student.logits, step.teachers.logits[:, 0], 2.0)
    )
    with pytest.raises(ValueError, match="temperature must be positive"):
        RoutedKD(0.0)


@pytest.mark.parametrize("mix", ["probs", "logits", "logmeanexp", "confidence"])
@pytest.mark.parametrize("k", [1, 2])
def test_a_mixture_of_the_chosen_teachers_runs_their_rows_only(mix: str, k: int) -> None:
    routers = [make_router(4, k=k, combine="target", mix=mix, signal="kd" if k > 1 else None) for _ in range(2)]
    pool, batch = strangers(4), make_batch(9)
    seen: list[int] = []
    for name in pool.names:
        pool.teacher(name).network.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    losses, gradients = [], []
    for router, variants in zip(routers, ([], None), strict=True):
        seen.clear()
        step = make_step(pool, router, batch, variants=variants)
        losses.append(RoutedKD()(step)["routed_kd"])
        assert sum(seen) == 9 * (4 if variants is None else k)
        if k > 1:
            gradients.append(torch.autograd.grad(losses[-1].sum(), list(router.gate.parameters())))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    for first, all_rows in zip(*(gradients or ([], [])), strict=True):
        torch.testing.assert_close(first, all_rows, rtol=1e-4, atol=1e-6)


def test_two_routed_objectives_share_the_teachers_rows() -> None:
    pool = strangers(3)
    step = make_step(pool, make_router(3), variants=[])
    objectives = [RoutedKD(), RoutedObjective(LabelGap())]
    found = [objective(step) for objective in objectives]
    assert pool.forwards <= 3
    full = make_step(strangers(3), make_router(3))
    for objective, losses in zip(objectives, found, strict=True):
        for name, loss in objective(full).items():
            torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=1e-6)
