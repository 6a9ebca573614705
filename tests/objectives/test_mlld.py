"""Multi-level logit distillation: loops, and the two normalisations."""

from __future__ import annotations

import pytest
import torch

from moekd.objectives import MultiLevelLogits, kd_kl, multi_level_loss


def levels(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
    """Instance, class and batch level with loops over pairs; the last two are squared Frobenius norms."""
    p, q = ((x / temperature).softmax(1) for x in (student, teacher))
    rows, classes = student.shape
    cc = sum(((p[:, i] @ p[:, j]) - (q[:, i] @ q[:, j])) ** 2 for i in range(classes) for j in range(classes))
    bc = sum(((p[i] @ p[j]) - (q[i] @ q[j])) ** 2 for i in range(rows) for j in range(rows))
    return kd_kl(student, teacher, temperature).mean(), cc, bc


def test_equals_a_loop_in_both_normalisations() -> None:
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    temperatures = [2.0, 4.0, 6.0]
    parts = [levels(student, teacher, t) for t in temperatures]
    paper = sum(kd + cc / 4 + bc / 6 for kd, cc, bc in parts)
    torch.testing.assert_close(multi_level_loss(student, teacher, temperatures).mean(), paper)
    benchmark = sum(kd + cc / 16 + bc / 36 for kd, cc, bc in parts) / 9
    torch.testing.assert_close(multi_level_loss(student, teacher, temperatures, "mean").mean(), benchmark)


def test_equal_models_have_no_loss() -> None:
    logits = torch.randn(6, 4)
    torch.testing.assert_close(multi_level_loss(logits, logits.clone(), [2.0]), torch.zeros(6), atol=1e-6, rtol=0)


def test_gradients_in_double_precision() -> None:
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: multi_level_loss(s, teacher, [2.0, 3.0]), (student,))


@pytest.mark.parametrize("temperatures", [[], [2.0, 0.0]])
def test_temperatures_must_be_positive(temperatures: list[float]) -> None:
    with pytest.raises(ValueError, match="temperatures must be positive, and at least one"):
        MultiLevelLogits(temperatures=temperatures)
