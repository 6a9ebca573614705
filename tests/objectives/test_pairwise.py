"""What every pairwise objective promises: teachers get no gradient, any batch is finite, routing means weighting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moekd.errors import ModelError
from moekd.objectives import KD, RoutedObjective, reduce
from moekd.signals import Signals
from moekd.teachers import TeacherPool

from ..builders import CLASSES, WIDTH, make_batch, make_router, make_step
from .distillers import ALL, ON_LOGITS, ON_MAPS, ON_VECTORS, make, pool_of, student_of


def loss_of(name: str, batch: dict, count: int = 3) -> Tensor:
    step = make_step(pool_of(name, count), None, batch, student_of(name), features=True)
    objective = make(name)
    return objective(step)[objective.name]


def random_signals(name: str, rows: int, seed: int = 0, scale: float = 1.0) -> tuple[Signals, Signals]:
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(rows, *shape, generator=rng) * scale).requires_grad_()

    vectors = {tap: draw(WIDTH) for tap in ("fc1", "fc2")}
    mine = {"conv2": draw(WIDTH, 4, 4)} if name in ON_MAPS else vectors
    other = {"conv1": draw(WIDTH, 8, 8)} if name in ON_MAPS else {"fc1": draw(WIDTH)}
    return Signals(draw(CLASSES), mine), Signals(draw(CLASSES), other)


def tensors_of(signals: Signals) -> list[Tensor]:
    return [signals.logits, *signals.features.values()]


@pytest.mark.parametrize("name", ALL)
def test_alone_it_is_the_mean_over_the_teachers(name: str) -> None:
    step = make_step(pool_of(name), None, make_batch(7), student_of(name), features=True)
    objective = make(name)
    each = [objective.pair_with(n, step.student, s, step.batch) for n, s in step.teachers.items()]
    assert all(loss.shape == (7,) for loss in each)
    torch.testing.assert_close(objective(step)[objective.name], torch.stack(each).mean(dim=0))
    objective.teacher = "t1"
    assert list(objective.variants(step.pool)) == ["t1"]
    torch.testing.assert_close(objective(step)[objective.name], each[1])


@pytest.mark.parametrize("name", ALL)
def test_the_student_learns_and_the_teachers_get_no_gradient(name: str) -> None:
    pool, student, objective = pool_of(name), student_of(name), make(name)
    for teacher in pool.names:
        pool.teacher(teacher).thaw()
    reduce(objective(make_step(pool, None, make_batch(7), student, features=True))[objective.name]).backward()
    assert all(p.grad is None for p in pool.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_small_batches_are_finite(name: str, rows: int) -> None:
    student, teacher = random_signals(name, rows)
    objective = make(name)
    loss = objective.pair_with("t0", student, teacher.detach(), make_batch(rows))
    reduce(loss).backward()
    assert loss.shape == (rows,)
    assert loss.isfinite().all()
    if rows == 0:
        assert reduce(loss) == 0
    assert all(x.grad is None or x.grad.isfinite().all() for x in tensors_of(student))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e3])
def test_constant_and_extreme_models_are_finite(name: str, scale: float) -> None:
    student, teacher = random_signals(name, 6, scale=scale)
    loss = make(name).pair_with("t0", student, teacher.detach(), make_batch(6))
    reduce(loss).backward()
    assert loss.isfinite().all()
    assert all(x.grad is None or x.grad.isfinite().all() for x in tensors_of(student))


@pytest.mark.parametrize("name", ALL)
def test_equal_rows_are_finite(name: str) -> None:
    student, teacher = (
        signals.map(lambda x: x[:1].detach().expand_as(x).clone().requires_grad_())
        for signals in random_signals(name, 5)
    )
    loss = make(name).pair_with("t0", student, teacher.detach(), make_batch(5))
    reduce(loss).backward()
    assert loss.isfinite().all()
    assert all(x.grad is None or x.grad.isfinite().all() for x in tensors_of(student))


@pytest.mark.parametrize("name", ALL)
def test_rows_without_labels_count(name: str) -> None:
    loss = loss_of(name, make_batch(6, labelled=[True, False, False, True, True, False]))
    assert loss.isfinite().all()
    assert loss_of(name, make_batch(6, labelled=[False] * 6)).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    student, teacher = random_signals(name, 16)
    objective, batch = make(name), make_batch(16)
    full = objective.pair_with("t0", student, teacher, batch)
    low = [signals.map(lambda x: x.bfloat16()) for signals in (student, teacher)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.pair_with("t0", *low, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.mean(), full.mean(), rtol=0.02, atol=0.002)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("variants", [None, []])
@pytest.mark.parametrize(("k", "combine"), [(1, "select"), (2, "loss"), (None, "loss")])
def test_routed_it_is_weighted_by_the_router(name: str, k: int | None, combine: str, variants: list | None) -> None:
    objective, pool = make(name), pool_of(name)
    step = make_step(
        pool,
        make_router(3, k=k, combine=combine),
        make_batch(7),
        student_of(name),
        variants=variants,
        features=objective.reads_features,
    )
    loss = RoutedObjective(objective)(step)["routed"]
    teachers = pool(step.batch, features=objective.reads_features)
    terms = [objective.pair_with(n, step.student, s, step.batch) for n, s in teachers.items()]
    expected = (step.routing.applied_weights * torch.stack(terms, dim=1)).sum(dim=1)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ON_LOGITS)
def test_routed_to_a_mixture(name: str) -> None:
    step = make_step(pool_of(name), make_router(3, k=None, combine="target"), make_batch(7), student_of(name))
    assert RoutedObjective(make(name))(step)["routed"].isfinite().all()


@pytest.mark.parametrize("name", ON_VECTORS | ON_MAPS)
def test_activations_can_not_be_mixed(name: str) -> None:
    router = make_router(3, k=None, combine="target")
    step = make_step(pool_of(name), router, make_batch(7), student_of(name), features=True)
    with pytest.raises(ModelError, match="activations can't be mixed"):
        RoutedObjective(make(name))(step)


@pytest.mark.parametrize("name", ON_VECTORS | ON_MAPS)
def test_routing_records_activations(name: str) -> None:
    assert RoutedObjective(make(name)).reads_features
    assert not RoutedObjective(KD()).reads_features


def test_without_a_teacher_it_says_so() -> None:
    with pytest.raises(ModelError, match="kd needs a teacher, but the recipe has none"):
        KD()(make_step(TeacherPool({})))
