"""Relations of a batch with the row itself among them, and both divergences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moekd.objectives import RelationalKL, relational_kl

from .towers import cosine, softmax, tower_pool, tower_step


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_equals_a_loop(exclude_self, direction) -> None:
    rng = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(5, width, generator=rng, dtype=torch.float64) for width in (3, 7))
    s, t = student.numpy(), teacher.numpy()
    expected = []
    for row in range(5):
        others = [j for j in range(5) if not (exclude_self and j == row)]
        q = softmax([6.0 * cosine(s[row], s[j]) for j in others])
        p = softmax([9.0 * cosine(t[row], t[j]) for j in others])
        first, second = (p, q) if direction == "teacher_student" else (q, p)
        expected.append(sum(a * (math.log(a) - math.log(b)) for a, b in zip(first, second, strict=True)))
    found = relational_kl(student, teacher, 6.0, 9.0, exclude_self=exclude_self, direction=direction)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("exclude_self", [True, False])
def test_rotations_and_padding_do_not_count(exclude_self) -> None:
    teacher = torch.randn(6, 4, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    padded = torch.cat([teacher @ rotation, torch.zeros(6, 3, dtype=torch.float64)], dim=1)
    loss = relational_kl(padded, teacher, exclude_self=exclude_self)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-9, rtol=0)


def test_equal_rows_are_left_out_but_never_the_row_itself() -> None:
    step = tower_step(tower_pool(9))
    step.batch = dict(step.batch) | {"kind": torch.zeros(6, dtype=torch.int64)}
    loss = RelationalKL(same="kind", exclude_self=False)(step)["relational_kl"]
    torch.testing.assert_close(loss, torch.zeros(6), atol=1e-6, rtol=0)
