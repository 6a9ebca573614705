"""C2KD: the non-target loss, the selection by rank correlation, who learns from whom."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError
from moekd.model import Model
from moekd.objectives import BidirectionalProxies, kd_kl, kendall_tau_b, non_target_kl, reduce
from moekd.objectives.kendall import mean_tau_b
from moekd.routers import Shapes
from moekd.teachers import Teacher, TeacherPool

from ..builders import CLASSES, WIDTH, DenseMaps, make_batch, make_step, randomise
from .distillers import VECTORS, pool_of, student_of


def objective(**options: object) -> BidirectionalProxies:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return BidirectionalProxies("t0", "fc1", "fc1", num_classes=CLASSES, shapes=VECTORS, **options)


@pytest.mark.parametrize("handling", ["zero", "exclude"])
def test_non_target_loss_equals_a_loop(handling: str) -> None:
    learner, goal = torch.randn(2, 6, 4, dtype=torch.float64)
    target, mask = torch.randint(0, 4, (6,)), torch.tensor([True, False, True, True, False, True])
    losses = non_target_kl(learner, goal, target, mask, handling)
    for b, y in enumerate(target.tolist()):
        rows = []
        for x in (learner[b], goal[b]):
            x = x.clone()
            x[y] = 0.0
            rows.append(x[[c for c in range(4) if handling == "zero" or c != y]])
        expected = kd_kl(rows[0][None], rows[1][None], 1.0)[0] if mask[b] else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(losses[b], expected)


def test_only_the_learner_gets_a_gradient_and_the_target_logit_none() -> None:
    learner, goal = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    target = torch.tensor([0, 1, 2])
    for handling in ("zero", "exclude"):
        non_target_kl(learner, goal, target, torch.ones(3, dtype=torch.bool), handling).sum().backward()
        assert goal.grad is None
        assert torch.equal(learner.grad.gather(1, target[:, None]), torch.zeros(3, 1))
        assert learner.grad.isfinite().all()
    one = non_target_kl(
        torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), torch.ones(2) > 0, "exclude"
    )
    assert torch.equal(one, torch.zeros(2))


def test_terms() -> None:
    loss, batch = objective(), make_batch(8)
    step = make_step(pool_of("c2kd"), None, batch, student_of("c2kd"), features=True)
    terms = loss(step)
    teacher = step.signals("t0")
    h_s, h_t = loss.student_proxy(step.student.features["fc1"]), loss.teacher_proxy(teacher.features["fc1"])
    torch.testing.assert_close(
        terms["c2kd/teacher_proxy"], kd_kl(h_t, teacher.logits, 1.0) + kd_kl(teacher.logits, h_t, 1.0)
    )
    torch.testing.assert_close(
        terms["c2kd/student_proxy"], kd_kl(h_s, step.student.logits, 1.0) + kd_kl(step.student.logits, h_s, 1.0)
    )
    mask = kendall_tau_b(h_t, h_s) > 0
    assert 0 < mask.sum() < 8
    assert torch.equal(terms["c2kd/non_target"] != 0, mask)


def test_an_empty_selection_has_no_loss() -> None:
    step = make_step(pool_of("c2kd"), None, make_batch(8), student_of("c2kd"), features=True)
    assert torch.equal(objective(threshold=1.0)(step)["c2kd/non_target"], torch.zeros(8))


def test_teacher_and_student_both_learn() -> None:
    pool, student, loss = pool_of("c2kd"), student_of("c2kd"), objective()
    pool.teacher("t0").thaw()
    terms = loss(make_step(pool, None, make_batch(8), student, features=True))
    sum(reduce(term) for term in terms.values()).backward()
    for module in (pool.teacher("t0"), student, loss):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert list(loss.variants(pool)) == ["t0"]


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches_are_finite(rows: int) -> None:
    terms = objective()(make_step(pool_of("c2kd"), None, make_batch(rows), student_of("c2kd"), features=True))
    assert all(term.isfinite().all() and term.shape == (rows,) for term in terms.values())


def test_taps_are_checked() -> None:
    with pytest.raises(ConfigError, match="'fc7' is no tap of the teacher 't0'"):
        BidirectionalProxies("t0", "fc1", "fc7", num_classes=CLASSES, shapes=VECTORS)


def dense_step(size: int = 4):
    """Return a dense objective on maps, and a step with a student and a teacher of pixels."""
    shapes = Shapes(taps={"conv": (WIDTH, 8, 8)}, teachers={"t0": {"conv": (WIDTH, 8, 8)}})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        loss = BidirectionalProxies("t0", "conv", "conv", dense=True, num_classes=CLASSES, shapes=shapes)
    teacher = Teacher(randomise(DenseMaps(), 4), ["image"], ["conv"], name="t0")
    student = Model(randomise(DenseMaps(), 5), ["image"], ["conv"])
    batch = make_batch(size) | {"label": torch.randint(0, CLASSES, (size, 8, 8))}
    return loss.eval(), make_step(TeacherPool({"t0": teacher}), None, batch, student, features=True)


def test_the_dense_form_is_the_mean_over_pixels_of_the_images_that_agree() -> None:
    loss, step = dense_step()
    terms = loss(step)
    h_s = loss.student_proxy(step.student.features["conv"])
    h_t = loss.teacher_proxy(step.signals("t0").features["conv"])
    crossed = []
    for b in range(4):
        a, c = (h[b].flatten(1).T for h in (h_s, h_t))
        agrees = kendall_tau_b(c, a).mean() > 0
        target, mask = step.batch["label"][b].flatten(), agrees.expand(64)
        crossed.append(non_target_kl(a, c, target, mask).mean() + non_target_kl(c, a, target, mask).mean())
    torch.testing.assert_close(terms["c2kd/non_target"], torch.stack(crossed))
    assert terms["c2kd/student_proxy"].shape == (4,)
    torch.testing.assert_close(
        terms["c2kd/student_proxy"], kd_kl(h_s, step.student.logits, 1.0) + kd_kl(step.student.logits, h_s, 1.0)
    )


def test_maps_of_another_size_are_brought_to_the_size_of_the_logits() -> None:
    loss, step = dense_step()
    step.student.features["conv"] = step.student.features["conv"][:, :, ::2, ::2]
    assert all(term.isfinite().all() for term in loss(step).values())
    with pytest.raises(ConfigError, match="no dense proxy"):
        BidirectionalProxies("t0", "fc1", "fc1", dense=True, num_classes=CLASSES, shapes=VECTORS)


def test_mean_rank_correlation_in_parts() -> None:
    a, b = torch.randn(2, 3, 5, 2, 4)
    whole = torch.stack([kendall_tau_b(a[i].flatten(1).T, b[i].flatten(1).T).mean() for i in range(3)])
    torch.testing.assert_close(mean_tau_b(a, b, rows=7), whole)
