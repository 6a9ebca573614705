"""One-for-all distillation: the sheet's values, a loop, its heads."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError
from moekd.objectives import OneForAll, adaptive_target_loss
from moekd.objectives.auxiliary_heads import make_auxiliary_head
from moekd.routers import Shapes
from moekd.signals import Signals

from ..builders import CLASSES
from .distillers import VECTORS


@pytest.mark.parametrize(("eps", "value"), [(1.0, 0.693147), (1.1, 0.712962)])
def test_known_values(eps: float, value: float) -> None:
    loss = adaptive_target_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), eps)
    torch.testing.assert_close(loss, torch.tensor([value]), atol=1e-6, rtol=0)


def test_equals_a_loop() -> None:
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    target = torch.randint(0, 4, (6,))
    losses = adaptive_target_loss(student, teacher, target, 1.5, 2.0)
    for b, y in enumerate(target.tolist()):
        p, log_q = (teacher[b] / 2).softmax(0), (student[b] / 2).log_softmax(0)
        hot = [float(c == y) for c in range(4)]
        expected = sum(-((p[c] + hot[c]) ** 1.5 - hot[c]) * log_q[c] for c in range(4))
        torch.testing.assert_close(losses[b], expected)


def test_with_exponent_1_it_is_the_cross_entropy_to_the_teacher() -> None:
    student, teacher = torch.randn(2, 6, 4)
    expected = torch.nn.functional.cross_entropy(student, teacher.softmax(1), reduction="none")
    torch.testing.assert_close(adaptive_target_loss(student, teacher, torch.zeros(6, dtype=torch.long)), expected)


def test_very_confident_heads_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = adaptive_target_loss(student, torch.tensor([[-1e4, 1e4]]), torch.tensor([0]), 1.5)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("on_logits", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_every_tap_has_a_head(on_logits: bool, reduction: str) -> None:
    objective = OneForAll(
        ["fc1", "fc2"], eps=1.1, on_logits=on_logits, reduction=reduction, num_classes=CLASSES, shapes=VECTORS
    )
    features = {tap: torch.randn(5, 12) for tap in ("fc1", "fc2")}
    student, teacher = torch.randn(2, 5, CLASSES)
    label = torch.randint(0, CLASSES, (5,))
    loss = objective.pair(Signals(student, features), Signals(teacher), {"label": label})
    logits = [head(features[tap]) for tap, head in zip(features, objective.heads, strict=True)]
    logits += [student] if on_logits else []
    each = torch.stack([adaptive_target_loss(x, teacher, label, 1.1) for x in logits])
    torch.testing.assert_close(loss, each.sum(dim=0) if reduction == "sum" else each.mean(dim=0))


@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 8, 8), (3, 1, 1)])
@pytest.mark.parametrize("rows", [1, 4])
def test_heads_read_every_kind_of_activation(shape: tuple[int, ...], rows: int) -> None:
    logits = make_auxiliary_head(shape, 5)(torch.randn(rows, *shape))
    assert logits.shape == (rows, 5)
    assert logits.isfinite().all()


def test_maps_couple_the_rows_and_vectors_do_not() -> None:
    maps = Shapes(taps={"conv": (3, 8, 8), "fc": (5,)})
    assert OneForAll(["conv", "fc"], num_classes=2, shapes=maps).compares_rows
    assert not OneForAll(["fc"], num_classes=2, shapes=maps).compares_rows


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"ofa\.student_taps: name each tap of the student once"):
        OneForAll([], num_classes=2, shapes=VECTORS)
    with pytest.raises(ConfigError, match="'fc9' is no tap of the student"):
        OneForAll(["fc9"], num_classes=2, shapes=VECTORS)
    with pytest.raises(ConfigError, match=r"no classifier for activations \[2, 3, 4, 5\]"):
        OneForAll(["x"], num_classes=2, shapes=Shapes(taps={"x": (2, 3, 4, 5)}))
    with pytest.raises(ValueError, match="temperature must be positive, found 0"):
        OneForAll(["fc1"], temperature=0, num_classes=2, shapes=VECTORS)
