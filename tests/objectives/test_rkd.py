"""Relational distillation: loops as oracles, invariances, blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moekd.objectives import RKD, rkd_angle, rkd_distance
from moekd.signals import Signals

from ..builders import make_batch, make_step
from .distillers import VECTORS, make, pool_of, student_of


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def loop_distance(student: Tensor, teacher: Tensor) -> list[float]:
    """Equations 4 and 5 in plain Python."""
    matrices = []
    for x in (student, teacher):
        rows = x.tolist()
        distances = [[math.dist(a, b) for b in rows] for a in rows]
        positive = [d for line in distances for d in line if d > 0]
        mean = sum(positive) / len(positive)
        matrices.append([[d / mean for d in line] for line in distances])
    return [
        sum(huber(a - b) for a, b in zip(*lines, strict=True)) / len(student) for lines in zip(*matrices, strict=True)
    ]


def loop_angle(student: Tensor, teacher: Tensor) -> list[float]:
    """Equations 6 and 7 with a loop over vertices and both ends."""
    rows, losses = len(student), []
    for i in range(rows):
        total = 0.0
        for j in range(rows):
            for k in range(rows):
                cosines = []
                for x in (student, teacher):
                    a, b = x[j] - x[i], x[k] - x[i]
                    cosines.append(float(a @ b / (a.norm() * b.norm())) if i not in (j, k) else 0.0)
                total += huber(cosines[0] - cosines[1])
        losses.append(total / rows**2)
    return losses


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_loop(seed: int) -> None:
    torch.manual_seed(seed)
    student, teacher = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64) * 4
    assert rkd_distance(student, teacher).tolist() == pytest.approx(loop_distance(student, teacher), abs=1e-6)
    for block in (1, 4, 64):
        assert rkd_angle(student, teacher, block).tolist() == pytest.approx(loop_angle(student, teacher), abs=1e-9)


def test_invariant_to_rotation_scale_and_shift() -> None:
    x = torch.randn(7, 4, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    for other in (x @ rotation, 3 * x, x + 5):
        torch.testing.assert_close(rkd_distance(other, x), torch.zeros(7, dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(rkd_angle(other, x), torch.zeros(7, dtype=torch.float64), atol=1e-9, rtol=0)


def test_blocks_have_the_gradients_of_the_whole() -> None:
    gradients = []
    base, teacher = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    for block in (2, 9):
        student = base.clone().requires_grad_()
        rkd_angle(student, teacher, block).mean().backward()
        gradients.append(student.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradients_in_double_precision() -> None:
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: rkd_distance(s, teacher), (student,))
    assert torch.autograd.gradcheck(lambda s: rkd_angle(s, teacher, 2), (student,))


def test_the_published_weights_are_25_and_50() -> None:
    step = make_step(pool_of("rkd", 1), None, make_batch(6), student_of("rkd"), features=True)
    mine, other = step.student.features["fc1"], step.signals("t0").features["fc1"]
    expected = 25 * rkd_distance(mine, other) + 50 * rkd_angle(mine, other)
    torch.testing.assert_close(RKD("fc1", "fc1")(step)["rkd"], expected)
    only = RKD("fc1", "fc1", distance_weight=1, angle_weight=0)(step)["rkd"]
    torch.testing.assert_close(only, rkd_distance(mine, other))


def test_embeddings_of_the_benchmark() -> None:
    objective = make("rkd_embedded")
    assert [name for name, _ in objective.named_parameters()] == ["embed.weight", "embed.bias"]
    assert "weight:t0:fc1" in objective.state_dict(), "the teacher's fixed projection is checkpointed"
    student, teacher = torch.randn(5, 12), torch.randn(5, 12)
    loss = objective.pair_with("t0", Signals(features={"fc1": student}), Signals(features={"fc1": teacher}), {})
    u = F.normalize(objective.embed(student), dim=1)
    v = F.normalize(teacher @ objective.get_buffer("weight:t0:fc1").T + objective.get_buffer("bias:t0:fc1"), dim=1)
    torch.testing.assert_close(loss, 25 * rkd_distance(u, v) + 50 * rkd_angle(u, v))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="block must be at least 1, found 0"):
        RKD("fc1", "fc1", block=0)
    with pytest.raises(ValueError, match="embed_dim must be at least 1"):
        RKD("fc1", "fc1", embed_dim=0, shapes=VECTORS)
