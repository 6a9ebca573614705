"""KD: the hand-computed value, a loop as oracle, gradients, extremes."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ModelError
from moekd.objectives import KD, kd_kl, standardise
from moekd.signals import Signals

from ..builders import make_batch, make_pool, make_step, make_student

REDUCTIONS: tuple[Literal["batchmean", "elements"], ...] = ("batchmean", "elements")


def loop_kd(student: list[float], teacher: list[float], temperature: float) -> float:
    """T^2 sum_c p_c (log p_c - log q_c) of one instance, in plain Python."""

    def log_softmax(values: list[float]) -> list[float]:
        scaled = [v / temperature for v in values]
        top = max(scaled)
        norm = top + math.log(sum(math.exp(v - top) for v in scaled))
        return [v - norm for v in scaled]

    log_q, log_p = log_softmax(student), log_softmax(teacher)
    return temperature**2 * sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def test_known_value() -> None:
    loss = kd_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]), temperature=4.0)
    torch.testing.assert_close(loss, torch.tensor([1.775106]), atol=1e-6, rtol=0)


def test_is_not_symmetric_in_student_and_teacher() -> None:
    a, b = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[4.0, 0.0, 1.0]])
    assert not torch.isclose(kd_kl(a, b), kd_kl(b, a))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.floats(0.25, 20.0), st.integers(0, 10_000))
def test_equals_a_loop(rows: int, classes: int, temperature: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=rng, dtype=torch.float64) * 3
    expected = [loop_kd(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    loss = kd_kl(student, teacher, temperature)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(kd_kl(student.float(), teacher.float(), temperature), loss.float(), atol=2e-5, rtol=2e-4)


def test_factor_t_squared_keeps_the_gradient_scale() -> None:
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(kd_kl(student * 7, teacher * 7, 7.0), 49 * kd_kl(student, teacher, 1.0))
    norms = []
    for temperature in (20.0, 40.0):
        learner = student.clone().requires_grad_()
        kd_kl(learner, teacher, temperature).sum().backward()
        norms.append(learner.grad.norm())
    torch.testing.assert_close(norms[0], norms[1], rtol=0.05, atol=0)


def test_dense_logits_give_the_mean_over_pixels() -> None:
    student, teacher = torch.randn(2, 3, 5, 4, 6)
    by_pixel = kd_kl(student.permute(0, 2, 3, 1).reshape(-1, 5), teacher.permute(0, 2, 3, 1).reshape(-1, 5), 2.0)
    torch.testing.assert_close(kd_kl(student, teacher, 2.0), by_pixel.reshape(3, 24).mean(dim=1))
    single = kd_kl(student[:, :, :1, :1], teacher[:, :, :1, :1], 2.0)
    torch.testing.assert_close(single, kd_kl(student[:, :, 0, 0], teacher[:, :, 0, 0], 2.0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2)])
def test_gradients_of_both_arguments(temperature: float, shape: tuple[int, ...]) -> None:
    student, teacher = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda s, t: kd_kl(s, t, temperature), (student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
def test_extremes_stay_finite(dtype: torch.dtype, temperature: float) -> None:
    ends = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0], [1e4, 1e4, -1e4]])
    student, teacher = (x.to(dtype).requires_grad_() for x in (ends, ends.roll(1, 0)))
    loss = kd_kl(student, teacher, temperature)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    assert loss[0] > 0
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.01, 4.0, 100.0])
def test_equal_models_have_no_loss_and_no_gradient(temperature: float) -> None:
    logits = torch.tensor([[3.0, -2.0, 0.5], [1e4, 0.0, -1e4]])
    student, teacher = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = kd_kl(student, teacher, temperature)
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(2))
    torch.testing.assert_close(student.grad, torch.zeros_like(logits), atol=1e-5, rtol=0)
    torch.testing.assert_close(teacher.grad, torch.zeros_like(logits), atol=1e-5, rtol=0)


def test_one_class_has_no_loss_and_no_gradient() -> None:
    student = torch.randn(3, 1, requires_grad=True)
    loss = kd_kl(student, torch.randn(3, 1))
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(3))
    assert torch.equal(student.grad, torch.zeros(3, 1))


def test_autocast_stays_within_two_percent() -> None:
    student, teacher = torch.randn(2, 64, 10) * 3
    with torch.autocast("cpu", torch.bfloat16):
        low = kd_kl(student.bfloat16(), teacher.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.mean(), kd_kl(student, teacher).mean(), rtol=0.02, atol=0)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        kd_kl(torch.zeros(1, 2), torch.zeros(1, 2), temperature)
    with pytest.raises(ValueError, match="temperature must be positive"):
        KD(temperature=temperature)


def test_other_class_sets_are_refused_with_both_shapes() -> None:
    with pytest.raises(ModelError, match=r"student logits \(2, 3\) and teacher's \(2, 4\)"):
        kd_kl(torch.zeros(2, 3), torch.zeros(2, 4))


def test_objective_takes_one_named_teacher_or_the_mean_of_all() -> None:
    step = make_step(make_pool("fusion", "vectors"))
    student = step.student.logits
    one = KD("vectors/fc1")(step)["kd"]
    torch.testing.assert_close(one, kd_kl(student, step.teachers["vectors/fc1"].logits))
    every = [kd_kl(student, signals.logits) for signals in step.teachers.values()]
    torch.testing.assert_close(KD()(step)["kd"], torch.stack(every).mean(dim=0))
    assert KD("vectors").variants(step.pool) == ["vectors"]
    assert KD().variants(step.pool) == step.pool.experts


def test_objective_gives_teachers_no_gradient() -> None:
    pool = make_pool("vectors", masked=False)
    pool.teacher("vectors").thaw()
    student = make_student()
    step = make_step(pool, batch=make_batch(), student=student)
    KD("vectors")(step)["kd"].mean().backward()
    assert all(p.grad is None for p in pool.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_unknown_teacher_is_named_with_the_nearest() -> None:
    step = make_step(make_pool("fusion"))
    with pytest.raises(ModelError, match="no teacher variant 'fusoin'; did you mean 'fusion'"):
        KD("fusoin")(step)


def test_standardised_logits_have_mean_0_and_deviation_1() -> None:
    logits = torch.randn(5, 7) * 30 + 4
    scaled = standardise(logits)
    torch.testing.assert_close(scaled.mean(dim=1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.std(dim=1), torch.ones(5))
    assert torch.equal(standardise(torch.randn(3, 1)), torch.zeros(3, 1))
    assert torch.equal(standardise(torch.full((2, 4), 3.0)), torch.zeros(2, 4))


def test_standardised_kd_is_blind_to_the_scale_of_the_logits() -> None:
    student, teacher = torch.randn(2, 6, 5)
    objective = KD(temperature=2.0, standardise=True)
    loss = objective.pair(Signals(student), Signals(teacher), {})
    torch.testing.assert_close(loss, kd_kl(standardise(student), standardise(teacher), 2.0))
    torch.testing.assert_close(
        objective.pair(Signals(10 * student + 3), Signals(teacher), {}), loss, rtol=1e-3, atol=1e-5
    )


def test_the_mean_over_the_elements_is_the_divergence_over_the_number_of_classes() -> None:
    teacher, student = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    losses = [KD(temperature=1.0, reduction=r).pair(Signals(student), Signals(teacher), {}) for r in REDUCTIONS]
    torch.testing.assert_close(losses[0], torch.tensor([0.1109442]), rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[1], torch.tensor([0.0554721]), rtol=1e-5, atol=0)
    student, teacher = torch.randn(2, 6, 5)
    whole, mean = (KD(reduction=r).pair(Signals(student), Signals(teacher), {}) for r in REDUCTIONS)
    assert torch.equal(mean, whole / 5)
    dense = [KD(reduction=r).pair_map(Signals(student[..., None]), Signals(teacher[..., None]), {}) for r in REDUCTIONS]
    assert torch.equal(dense[1], dense[0] / 5)


def test_other_heads_of_both_models_can_be_compared() -> None:
    scores, other = torch.randn(2, 6, 5)
    student, teacher = Signals(heads={"side": scores}), Signals(heads={"top": other})
    objective = KD("one", head="side", teacher_head="top")
    torch.testing.assert_close(objective.pair(student, teacher, {}), kd_kl(scores, other))
    assert (objective.logits_only, objective.reads_logits, objective.reads_embeddings) == (False, False, True)
    with pytest.raises(ModelError, match="kd needs the head 'sdie', which the model does not have; did you mean"):
        KD(head="sdie").pair(student, Signals(other), {})
