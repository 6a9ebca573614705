"""Knowledge review: the context loss in loops, the fusion, one path a teacher."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moekd.errors import ConfigError, ModelError
from moekd.objectives import ReviewKD, hierarchical_context_loss, reduce
from moekd.objectives.review_kd import AttentionFusion
from moekd.routers import Shapes
from moekd.signals import Signals

STUDENT, TEACHER = {"a": (3, 8, 8), "b": (5, 4, 4)}, {"c": (4, 16, 16), "d": (6, 4, 4)}
SHAPES = Shapes(taps=STUDENT, teachers={"t": TEACHER, "u": TEACHER})


def signals(shapes: dict[str, tuple[int, ...]], rows: int = 3) -> Signals:
    return Signals(features={tap: torch.randn(rows, *shape, requires_grad=True) for tap, shape in shapes.items()})


@pytest.mark.parametrize(("side", "levels"), [(8, [4, 2, 1]), (4, [2, 1]), (1, [])])
def test_context_loss_equals_a_loop(side: int, levels: list[int]) -> None:
    student, teacher = torch.randn(2, 3, 5, side, side, dtype=torch.float64)
    for b in range(3):
        difference = student[b] - teacher[b]
        total, weights = (difference**2).mean(), [1.0]
        for level in levels:
            weights.append(weights[-1] / 2)
            cell = side // level
            cells = [
                difference[c, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].mean() ** 2
                for c in range(5)
                for i in range(level)
                for j in range(level)
            ]
            total = total + weights[-1] * torch.stack(cells).mean()
        torch.testing.assert_close(hierarchical_context_loss(student, teacher)[b], total / sum(weights))


def test_fusion_weighs_both_maps_pixel_by_pixel() -> None:
    fusion = AttentionFusion(3, 4, 6, fuses=True).eval()
    x, deeper = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)
    out, fused = fusion(x, deeper, (16, 16))
    mine, other = fusion.entry(x), F.interpolate(deeper, size=(8, 8), mode="nearest")
    z = fusion.attention(torch.cat([mine, other], 1)).sigmoid()
    torch.testing.assert_close(fused, mine * z[:, 0:1] + other * z[:, 1:2])
    torch.testing.assert_close(out, F.interpolate(fusion.exit(fused), size=(16, 16), mode="nearest"))


def test_sum_over_the_stages_deep_ones_first() -> None:
    objective = ReviewKD(["a", "b"], ["c", "d"], shapes=SHAPES).eval()
    student, teacher = signals(STUDENT), signals(TEACHER)
    shallow, deep = objective.paths["path:t"].fusions
    assert deep.attention is None
    out_d, fused = deep(student.features["b"], None, (4, 4))
    out_c, _ = shallow(student.features["a"], fused, (16, 16))
    expected = hierarchical_context_loss(out_c, teacher.features["c"])
    expected = expected + hierarchical_context_loss(out_d, teacher.features["d"])
    torch.testing.assert_close(objective.pair_with("t/masked", student, teacher, {}), expected)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_all_weights_learn_and_the_batch_may_be_small(rows: int) -> None:
    objective = ReviewKD(["a", "b"], {"u": ["c", "d"]}, middle=4, shapes=SHAPES)
    student, teacher = signals(STUDENT, rows), signals(TEACHER, rows)
    loss = objective.pair_with("u", student, teacher.detach(), {})
    reduce(loss).backward()
    assert loss.shape == (rows,)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student.features.values())
    assert all(x.grad is None for x in teacher.features.values())


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="give as many of each"):
        ReviewKD(["a", "b"], ["c"], shapes=SHAPES)
    with pytest.raises(ConfigError, match=r"review_kd takes maps \[C, H, W\]; tap 'v' gives \[7\]"):
        ReviewKD(["v"], ["c"], shapes=Shapes(taps={"v": (7,)}, teachers={"t": TEACHER}))
    with pytest.raises(ModelError, match="names no taps for 'x'"):
        ReviewKD(["a"], ["c"], shapes=SHAPES).pair_with("x", signals(STUDENT), signals(TEACHER), {})
