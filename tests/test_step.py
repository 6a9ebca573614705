"""A step computes signals on first use, each teacher once, and says the same from a cache.

The invariants of MST-Distill's third stage (arXiv 2507.07015) are held here over several optimizer steps.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from moekd.cache import Needs, SignalCache, TeacherPass, cache_in_memory
from moekd.data.arrays import ArrayField, ArraySplit
from moekd.data.dataset import FieldSpec
from moekd.errors import ModelError
from moekd.objectives import KD, CrossEntropy, KDToStudent, MutualKD, RoutedKD, reduce
from moekd.routers import Router
from moekd.routers.balances import KLToUniform
from moekd.signals import PoolSignals
from moekd.step import Models, Step
from moekd.teachers import TeacherPool

from .builders import (
    descend,
    hook_count,
    make_batch,
    make_pool,
    make_router,
    make_step,
    make_student,
    same_state,
    snapshot,
    strangers,
)

INPUTS = ("left", "right", "image")


def test_nothing_runs_before_it_is_asked_for() -> None:
    pool, student, calls = make_pool("fusion"), make_student(), []
    student.network.register_forward_pre_hook(lambda m, a: calls.append("student"))
    step = make_step(pool, make_router(2), student=student)
    assert (pool.forwards, calls, step.routed) == (0, [], None)
    _ = step.routing
    assert (pool.forwards, calls) == (0, ["student"])
    _ = step.teachers, step.teachers, step.student
    assert (pool.forwards, calls) == (1, ["student"])


@pytest.mark.parametrize(
    ("objectives", "forwards"),
    [
        ([CrossEntropy()], 0),
        ([CrossEntropy("all"), MutualKD()], 2),
        ([CrossEntropy("all"), MutualKD(), KDToStudent(), KD("fusion/join"), RoutedKD()], 2),
        ([KD("fusion"), KD("fusion/join")], 1),
    ],
)
def test_planned_teachers_run_once_for_all_objectives(objectives: list, forwards: int) -> None:
    pool = make_pool("fusion", "vectors")
    readers = {name for objective in objectives for name in objective.variants(pool)}
    variants = [name for name in [*pool.names, *pool.specialised] if name in readers]
    step = make_step(pool, make_router(4), variants=variants)
    for objective in objectives:
        objective(step)
    assert pool.forwards == forwards


def test_teachers_are_the_experts_whatever_else_was_planned() -> None:
    pool = make_pool("fusion", "vectors")
    full = pool(make_batch()).logits
    plans = [None, [*pool.names, *pool.experts], pool.experts[::-1], ["fusion"], []]
    for variants in plans:
        step = make_step(pool, variants=variants)
        assert step.teachers.names == pool.experts
        torch.testing.assert_close(step.teachers.logits, full)


def test_signals_by_name() -> None:
    pool = make_pool("fusion", "vectors")
    step = make_step(pool, variants=["vectors"])
    assert step.signals("student") is step.student
    for name in ("vectors", "fusion", "fusion/join"):
        torch.testing.assert_close(step.signals(name).logits, pool(step.batch, [name])[name].logits)
    before = pool.forwards
    assert step.signals("fusion/join") is step.signals("fusion/join")
    assert pool.forwards == before
    with pytest.raises(ModelError, match="no teacher variant 'fusion/jion'; did you mean 'fusion/join'"):
        step.signals("fusion/jion")


@pytest.mark.parametrize("features", [False, True])
def test_features_are_recorded_on_request(features: bool) -> None:
    pool = make_pool("fusion")
    pool.teacher("fusion").taps = ("left",)
    step = make_step(pool, features=features)
    assert all(list(s.features) == ["left"] * features for s in step.teachers.values())


def test_a_recipe_without_a_router_says_so() -> None:
    with pytest.raises(ModelError, match="needs a router, but the recipe has none; add a 'router' section"):
        RoutedKD()(make_step(make_pool("fusion")))


def test_rows_are_routed_first_only_where_that_is_right() -> None:
    def decided(router: Router | None, **options: object) -> bool:
        return make_step(strangers(3), router, **({"variants": []} | options)).routes_rows_first

    assert decided(make_router(3))
    assert decided(make_router(3, k=2, combine="loss"))
    assert not decided(None)
    assert not decided(make_router(3), variants=["t0"])
    assert not decided(make_router(3), cache=lambda batch: PoolSignals({}))
    assert not decided(make_router(3, signal="task"))
    assert not decided(make_router(3, k=None, combine="loss"))
    step = make_step(strangers(3), make_router(3), variants=[])
    _ = step.teachers
    assert not step.routes_rows_first


def test_without_teachers_a_step_still_works() -> None:
    step = make_step(TeacherPool({}))
    assert step.teachers.names == []
    assert reduce(CrossEntropy()(step)["cross_entropy/student"]).isfinite()


def loss_of(step: Step) -> Tensor:
    """Return the loss of stage 3: cross-entropy, distillation from the chosen teachers, balance."""
    losses = [reduce(loss) for objective in (CrossEntropy(), RoutedKD()) for loss in objective(step).values()]
    return torch.stack([*losses, *step.routing.losses.values()]).sum()


def cache_of(pool: TeacherPool, seeds: range) -> SignalCache:
    batches = [make_batch(seed=s) for s in seeds]
    whole = {key: torch.cat([batch[key] for batch in batches]).numpy() for key in batches[0]}
    fields = {key: ArrayField(whole[key], FieldSpec(whole[key].shape[1:], "float32", "vector")) for key in INPUTS}
    split = ArraySplit("train", whole["id"], whole["label"], fields)
    return cache_in_memory(TeacherPass(pool, pool.experts, Needs(), split, "train", 6, torch.device("cpu")))


def distil(pool: TeacherPool, cache: SignalCache | None, variants: list[str] | None = None) -> tuple[list[float], list]:
    """Train a student and a gate for eight steps; return the losses and the weights."""
    student, router = make_student(), make_router(len(pool.experts), balance=[KLToUniform()])
    losses = []
    for i in range(8):
        step = Step(make_batch(seed=i % 4), Models(student, pool, router), cache=cache, variants=variants)
        loss = loss_of(step)
        loss.backward()
        losses.append(loss.item())
        descend(student, 0.01)
        descend(router, 0.01)
    return losses, [*student.parameters(), *router.parameters()]


def test_cached_teachers_give_the_same_training() -> None:
    pool = make_pool("fusion", "late", "maps")
    cache = cache_of(pool, range(4))
    before = pool.forwards
    cached, live = distil(pool, cache), None
    assert pool.forwards == before
    live = distil(pool, None)
    assert pool.forwards == before + 8 * 3
    assert cached[0] == live[0]
    assert all(torch.equal(a, b) for a, b in zip(cached[1], live[1], strict=True))


def test_rows_first_gives_the_same_training() -> None:
    pool = make_pool("fusion", "vectors")
    (live, _), (by_rows, _) = distil(pool, None), distil(pool, None, variants=[])
    assert by_rows == pytest.approx(live, rel=1e-4)


def test_distillation_leaves_teachers_and_masks_as_they_are() -> None:
    pool = make_pool("fusion", "maps")
    before, hooks, fingerprint = snapshot(pool), hook_count(pool), pool.teacher("maps").fingerprint()
    pool.train()
    pool.masks.eval()
    distil(pool, None)
    assert same_state(pool, before)
    assert hook_count(pool) == hooks
    assert pool.teacher("maps").fingerprint() == fingerprint
    assert all(p.grad is None for p in pool.parameters())


def test_small_batches_accumulate_to_the_gradient_of_the_large_one() -> None:
    pool, batch = strangers(3), make_batch(32)
    student, router = make_student(), make_router(3, k=2)
    objectives = (CrossEntropy(), RoutedKD(), KD())

    def accumulate(size: int) -> list[Tensor]:
        student.zero_grad()
        for start in range(0, 32, size):
            part = {key: value[start : start + size] for key, value in batch.items()}
            step = make_step(pool, router, part, student)
            losses = [reduce(loss) for objective in objectives for loss in objective(step).values()]
            (torch.stack(losses).sum() * size / 32).backward()
        return [p.grad.clone() for p in student.parameters()]

    for whole, parts in zip(accumulate(32), accumulate(8), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_unlabelled_rows_take_part_in_distillation() -> None:
    batch = make_batch(6, labelled=[True] + [False] * 5)
    step = make_step(strangers(2), make_router(2), batch=batch)
    assert RoutedKD()(step)["routed_kd"].shape == (6,)
    assert (RoutedKD()(step)["routed_kd"] > 0).all()
    loss_of(step).backward()
    assert all(p.grad.isfinite().all() for p in step.models.student.parameters())


def test_two_runs_in_one_process_share_nothing() -> None:
    pool = make_pool("fusion")
    alone = distil(pool, None)[0]
    other = make_pool("fusion", "vectors")
    mixed, student, router = [], make_student(), make_router(2, balance=[KLToUniform()])
    for i in range(8):
        loss = loss_of(Step(make_batch(seed=i % 4), Models(student, pool, router)))
        loss_of(Step(make_batch(seed=9), Models(copy.deepcopy(student), other, make_router(4, k=2)))).backward()
        loss.backward()
        mixed.append(loss.item())
        descend(student, 0.01)
        descend(router, 0.01)
    assert mixed == alone
