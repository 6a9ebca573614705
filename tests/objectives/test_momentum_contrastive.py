"""Contrast with a momentum teacher's features: known values, a loop, the queue, several teachers, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moekd.errors import ConfigError, ModelError
from moekd.objectives import MomentumContrastive, mix_targets, reduce, soft_cross_entropy
from moekd.objectives.equal_rows import matching_loss
from moekd.routers import GATES, Dense, Router
from moekd.schedules import Linear, Progress

from ..builders import make_batch
from .towers import arrays, cosine, make_towers, pair_of, softmax, tower_pool, tower_shapes, tower_step


def loss_of(objective: MomentumContrastive, step) -> torch.Tensor:
    return objective(step)["momentum_contrastive"]


def test_the_value_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    target = mix_targets(torch.eye(2), logits, 0.4)
    assert float(soft_cross_entropy(logits, target).mean()) == pytest.approx(0.2222904, abs=1e-6)


def test_no_gradient_where_the_student_is_the_teacher() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = mix_targets(torch.zeros(4, 7), logits.detach(), 1.0)
    soft_cross_entropy(logits, target).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(4, 7), atol=1e-6, rtol=0)


def test_without_teachers_share_it_is_the_plain_contrast_with_their_features() -> None:
    pool = tower_pool(6)
    step = tower_step(pool)
    (v, w), (_, w_m) = pair_of(step.student), pair_of(step.signals("t0"))
    v_m = pair_of(step.signals("t0"))[0]
    unit = torch.nn.functional.normalize
    own = torch.arange(6)
    image = matching_loss(5.0 * unit(v) @ unit(w_m).T, own)
    text = matching_loss(5.0 * unit(w) @ unit(v_m).T, own)
    found = loss_of(MomentumContrastive("t0", alpha=0.0, queue=0, scale=5.0), step)
    torch.testing.assert_close(found, (image + text) / 2)


@pytest.mark.parametrize("start", ["empty", "random"])
def test_equals_a_loop_with_queue_equal_rows_and_two_teachers(start) -> None:
    """Three batches; the second and third see the rows of those before, some of which show the same thing."""
    torch.manual_seed(0)
    pool, rows, size = tower_pool(6, 9), 4, 6
    objective = MomentumContrastive(
        "t0",
        ["t0", "t1"],
        alpha=0.3,
        queue=size,
        queue_start=start,
        scale=7.0,
        teacher_scale={"t0": 5.0, "t1": 9.0},
        same="kind",
        shapes=tower_shapes(6, 9),
    ).train()
    kept: dict[str, list[np.ndarray]] = {
        name: list(objective.queue.rows(name).clone().numpy()) if start == "random" else []
        for name in objective.queue.names
    }
    numbers: list[int] = [-1] * len(kept["t0/image"])
    for seed in range(3):
        batch = make_batch(rows, seed) | {"kind": torch.tensor([0, 1, 1, seed + 2])}
        step = tower_step(pool, rows=rows)
        step.batch = batch
        student = arrays(pair_of(step.student))
        teachers = {name: arrays(pair_of(step.signals(name))) for name in ("t0", "t1")}
        ids = [*batch["kind"].tolist(), *numbers]
        expected = np.zeros(rows)
        for mine, other in ((0, 1), (1, 0)):
            key = ("image", "text")[other]
            candidates = {n: [*teachers[n][other], *kept[f"{n}/{key}"]] for n in teachers}
            for row in range(rows):
                q = softmax([7.0 * cosine(student[mine][row], c) for c in candidates["t0"]])
                hard = np.array([float(i == ids[row]) for i in ids])
                soft = [
                    softmax([s * cosine(teachers[n][mine][row], c) for c in candidates[n]])
                    for n, s in (("t0", 5.0), ("t1", 9.0))
                ]
                target = 0.7 * hard / hard.sum() + 0.3 * np.mean(soft, axis=0)
                assert target.sum() == pytest.approx(1)
                expected[row] -= (target * np.log(q)).sum() / 2
        np.testing.assert_allclose(loss_of(objective, step).detach().numpy(), expected, rtol=2e-4)
        fresh = batch["kind"].tolist()
        for name, both in teachers.items():
            for side, key in enumerate(("image", "text")):
                kept[f"{name}/{key}"] = push(kept[f"{name}/{key}"], list(both[side]), size, seed * rows)
        numbers = push(numbers, fresh, size, seed * rows)


def push(held: list, new: list, size: int, at: int) -> list:
    """Write rows into a ring; one that is not full yet grows."""
    held = list(held)
    for offset, item in enumerate(new):
        place = (at + offset) % size
        held[place : place + 1] = [item]
    return held


def test_gradients_reach_the_student_alone() -> None:
    pool = tower_pool(6)
    student = make_towers()
    objective = MomentumContrastive("t0", queue=8, shapes=tower_shapes(6)).train()
    step = tower_step(pool, student)
    reduce(loss_of(objective, step)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.network.image.parameters())
    assert all(p.grad is None for p in pool.parameters())
    assert objective.scale.log_scale.grad is not None
    assert not any(b.requires_grad for b in objective.queue.buffers())


def test_the_shared_scale_learns_as_a_students_only() -> None:
    """The teacher's scores have the student's scale, but it is no way to make targets easier."""
    grads = []
    for scale in ("student", {"t0": 1 / 0.07}):
        objective = MomentumContrastive("t0", alpha=0.5, queue=0, teacher_scale=scale)
        reduce(loss_of(objective, tower_step(tower_pool(6)))).backward()
        grads.append(objective.scale.log_scale.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_only_training_fills_the_queue() -> None:
    objective = MomentumContrastive("t0", queue=8, shapes=tower_shapes(6)).eval()
    loss_of(objective, tower_step(tower_pool(6)))
    assert not objective.queue.filled.any()
    objective.train()
    loss_of(objective, tower_step(tower_pool(6)))
    assert objective.queue.filled.sum() == 6


def test_the_share_follows_a_schedule() -> None:
    ramp = Linear(0.0, 0.4, until=0.1)
    objective = MomentumContrastive("t0", alpha=ramp, queue=0, scale=4.0)
    for fraction, alpha in ((0.0, 0.0), (0.05, 0.2), (0.1, 0.4), (0.9, 0.4)):
        step = tower_step(tower_pool(6), progress=Progress(0, fraction))
        fixed = MomentumContrastive("t0", alpha=alpha, queue=0, scale=4.0)
        torch.testing.assert_close(loss_of(objective, step), loss_of(fixed, step))


@pytest.mark.parametrize("combine", ["select", "loss", "target"])
def test_a_uniform_router_is_the_mean_of_the_teachers(combine) -> None:
    pool, shapes = tower_pool(6, 9), tower_shapes(6, 9)
    router = Router(GATES.get("static")(num_teachers=2), Dense(), combine=combine)
    options = {"alpha": 0.4, "queue": 6, "scale": 5.0, "teacher_scale": 6.0, "shapes": shapes}
    routed = MomentumContrastive("t0", weights="router", **options)
    plain = MomentumContrastive("t0", ["t0", "t1"], **options)
    assert routed.routable
    found = loss_of(routed, tower_step(pool, router=router))
    torch.testing.assert_close(found, loss_of(plain, tower_step(pool)))


def test_one_row_and_no_row() -> None:
    for rows in (0, 1):
        objective = MomentumContrastive("t0", queue=3, shapes=tower_shapes(6)).train()
        loss = reduce(loss_of(objective, tower_step(tower_pool(6), rows=rows)))
        loss.backward()
        assert torch.isfinite(loss)


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="alpha must be in"):
        MomentumContrastive("t0", alpha=1.5, queue=0)
    with pytest.raises(ConfigError, match="give 'shapes'"):
        MomentumContrastive("t0", queue=4)
    with pytest.raises(ConfigError, match="gives no embedding 'sound'"):
        MomentumContrastive("t0", queue=4, text="sound", shapes=tower_shapes(6))
    with pytest.raises(ConfigError, match="the router says which"):
        MomentumContrastive("t0", ["t0"], weights="router", queue=0)
    with pytest.raises(ConfigError, match="teacher_scale must be"):
        MomentumContrastive("t0", teacher_scale="own", queue=0)
    step = tower_step(tower_pool(6))
    step.student.heads.clear()
    with pytest.raises(ModelError, match="scale"):
        loss_of(MomentumContrastive("t0", scale="model", queue=0), step)
