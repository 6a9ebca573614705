"""Attention transfer: a loop, sizes that differ, tokens."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ModelError
from moekd.objectives import AttentionTransfer, attention_loss


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_equals_a_loop(power: float) -> None:
    student, teacher = torch.randn(3, 5, 2, 4, dtype=torch.float64), torch.randn(3, 7, 2, 4, dtype=torch.float64)
    losses = attention_loss(student, teacher, power)
    for b in range(3):
        maps = []
        for x in (student[b], teacher[b]):
            energy = torch.stack(
                [sum(x[c, i, j].abs() ** power for c in range(len(x))) for i in range(2) for j in range(4)]
            )
            maps.append(energy / energy.square().sum().sqrt())
        torch.testing.assert_close(losses[b], (maps[0] - maps[1]).square().sum() / 8)


def test_blind_to_scale_sign_and_channels() -> None:
    teacher = torch.randn(3, 5, 4, 4)
    student = -3 * torch.cat([teacher, teacher], dim=1)
    torch.testing.assert_close(attention_loss(student, teacher), torch.zeros(3), atol=1e-7, rtol=0)


def test_the_larger_map_is_averaged_down() -> None:
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 4)
    halved = student.reshape(2, 3, 4, 2, 4).mean(dim=3)
    torch.testing.assert_close(attention_loss(student, teacher), attention_loss(halved, teacher))


def test_tokens_are_positions() -> None:
    student, teacher = torch.randn(2, 6, 5), torch.randn(2, 6, 9)
    maps = [x.transpose(1, 2).unsqueeze(3) for x in (student, teacher)]
    torch.testing.assert_close(attention_loss(student, teacher), attention_loss(*maps))


def test_gradients_in_double_precision() -> None:
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 4, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: attention_loss(s, teacher), (student,))


def test_mistakes() -> None:
    with pytest.raises(ModelError, match=r"compares maps .* found \(2, 12\) and \(2, 3, 4, 4\)"):
        attention_loss(torch.zeros(2, 12), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="power must be positive, found 0"):
        AttentionTransfer("conv2", "conv1", power=0)
