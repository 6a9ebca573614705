"""Spatial tokens: grids, resizing, heads, normalisation.

Shapes: B batch, N tokens, D channels.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from moekd.errors import ConfigError, ModelError
from moekd.objectives import TokenKD
from moekd.objectives.token_kd import Grid, grid_of, resized
from moekd.routers import Shapes
from moekd.signals import Signals

TAPS = {"dino": {"blocks": (21, 5)}, "conv": {"blocks": (7, 2, 2)}}


def shapes(student: tuple[int, ...] = (17, 5), **teachers: tuple[int, ...]) -> Shapes:
    known = {name: {"blocks": shape} for name, shape in teachers.items()} or TAPS
    return Shapes(taps={"out": student}, teachers=known)


def signals(tap: str, value: Tensor) -> Signals:
    return Signals(features={tap: value})


def objective(student: tuple[int, ...] = (17, 5), teachers: dict[str, tuple[int, ...]] | None = None, **options):
    return TokenKD("out", "blocks", shapes=shapes(student, **(teachers or {})), **options)


@pytest.mark.parametrize(
    ("shape", "prefix", "expected"),
    [
        ((7, 3, 4), None, Grid(3, 4, 7, None)),
        ((197, 8), None, Grid(14, 14, 8, 1)),
        ((201, 8), None, Grid(14, 14, 8, 5)),
        ((196, 8), None, Grid(14, 14, 8, 0)),
        ((20, 8), 4, Grid(4, 4, 8, 4)),
    ],
)
def test_grids_are_found(shape, prefix, expected: Grid) -> None:
    assert grid_of(shape, prefix, "here") == expected


@pytest.mark.parametrize(("shape", "prefix"), [((20, 8), 1), ((8,), None), ((3, 8), 3), ((2, 3, 4, 5), None)])
def test_what_is_no_grid_is_refused(shape, prefix) -> None:
    with pytest.raises(ConfigError, match=r"^here: "):
        grid_of(shape, prefix, "here")


def test_resizing_is_bilinear_and_keeps_the_order_of_places() -> None:
    tokens = torch.arange(8.0).view(1, 4, 2)
    assert resized(tokens, (2, 2), (2, 2)) is tokens
    torch.testing.assert_close(resized(tokens, (2, 2), (1, 1)), tokens.mean(1, keepdim=True))
    up = resized(tokens, (2, 2), (4, 4))
    torch.testing.assert_close(up[0, 0], tokens[0, 0])
    torch.testing.assert_close(up[0, 15], tokens[0, 3])
    torch.testing.assert_close(up[0, 1], tokens[0, 0] * 0.75 + tokens[0, 1] * 0.25)


def test_equals_a_loop_over_places() -> None:
    student, teacher = torch.randn(3, 17, 5), torch.randn(3, 21, 5)
    options = {"distances": {"cosine": 0.9, "smooth_l1": 0.1, "mse": 0.5}, "teacher_prefix": {"dino": 5}}
    found = objective(teachers={"dino": (21, 5)}, **options).pair_with(
        "dino", signals("out", student), signals("blocks", teacher), {}
    )
    s, t = student[:, 1:].double().numpy(), teacher[:, 5:].double().numpy()
    expected = np.zeros(3)
    for b in range(3):
        for n in range(16):
            x, y = s[b, n], t[b, n]
            cosine = 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            far = np.abs(x - y)
            smooth = np.where(far < 1, far**2 / 2, far - 0.5).mean()
            expected[b] += (0.9 * cosine + 0.1 * smooth + 0.5 * (far**2).mean()) / 16
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("grid", "places"), [("smaller", 4), ("student", 16), ("teacher", 4)])
def test_tokens_meet_on_a_common_grid_with_a_head_for_each_teacher(grid, places: int) -> None:
    loss = objective(grid=grid)
    assert set(loss.heads) == {"conv:blocks"}
    student = signals("out", torch.randn(2, 17, 5, requires_grad=True))
    own, target = loss.tokens("conv", student, signals("blocks", torch.randn(2, 7, 2, 2)))
    assert own.shape == target.shape == (2, places, 7)
    loss.pair_with("conv", student, signals("blocks", torch.randn(2, 7, 2, 2)), {}).mean().backward()
    assert loss.heads["conv:blocks"].weight.grad is not None


def test_a_student_with_the_same_tokens_is_at_the_floor() -> None:
    tokens = torch.randn(2, 17, 5)
    student = tokens.clone().requires_grad_()
    loss = objective(teachers={"dino": (17, 5)}).pair_with(
        "dino", signals("out", student), signals("blocks", tokens), {}
    )
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-6, rtol=0)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalise", ["zscore", "ema", "phi_s"])
@pytest.mark.parametrize("projection", ["auto", "mlp"])
def test_statistics_are_kept_by_teacher_and_folded_back(normalise, projection) -> None:
    loss = objective(teachers={"a": (17, 5), "b": (17, 5)}, normalise=normalise, projection=projection)
    student = signals("out", torch.randn(4, 17, 5))
    said = {"a": signals("blocks", 100 * torch.randn(4, 17, 5) + 7), "b": signals("blocks", torch.randn(4, 17, 5))}
    losses = {name: loss.pair_with(name, student, teacher, {}) for name, teacher in said.items()}
    assert float((losses["a"].mean() / losses["b"].mean()).detach()) < 3
    loss.eval()
    own, target = loss.tokens("a", student, said["a"])
    torch.testing.assert_close(target.flatten(0, 1).var(0, unbiased=False), torch.ones(5), rtol=0.05, atol=0.05)
    norm = loss.norms["a:blocks"]
    raw = loss.raw_head("a")(student.features["out"][:, 1:])
    torch.testing.assert_close(raw, norm.inverse(own), rtol=1e-3, atol=1e-3)
    assert loss.compares_rows


def test_statistics_change_in_training_only() -> None:
    loss = objective(teachers={"a": (17, 5)}, normalise="zscore")
    student, teacher = signals("out", torch.randn(4, 17, 5)), signals("blocks", torch.randn(4, 17, 5))
    loss.eval().pair_with("a", student, teacher, {})
    assert loss.norms["a:blocks"].updates == 0
    loss.train().pair_with("a", student, teacher, {})
    assert loss.norms["a:blocks"].updates == 1


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"token_kd\.distances takes cosine, smooth_l1, mse"):
        objective(distances={"l1": 1.0})
    with pytest.raises(ConfigError, match="tokens have 5 channels in the student and 7 in the teacher"):
        objective(projection="none")
    with pytest.raises(ConfigError, match="is no tap of the student"):
        TokenKD("outt", "blocks", shapes=shapes())
    with pytest.raises(ConfigError, match="no square grid; set the number of leading tokens"):
        objective(student_prefix=2)
    loss = objective()
    with pytest.raises(ModelError, match=r"made for a grid of 4 x 4 places with 5 channels of the student"):
        loss.pair_with("dino", signals("out", torch.randn(2, 26, 5)), signals("blocks", torch.randn(2, 21, 5)), {})
    with pytest.raises(ModelError, match="has no head for 'dino'"):
        loss.raw_head("dino")


def test_gradient_in_double_precision() -> None:
    loss = objective(teachers={"conv": (7, 2, 2)}).double()
    teacher = torch.randn(2, 7, 2, 2, dtype=torch.float64)
    student = torch.randn(2, 17, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: loss.pair_with("conv", signals("out", x), signals("blocks", teacher), {}), (student,)
    )
