"""Losses on the relations of a batch against loops: interactive, relational, sigmoid, ranking, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError, ModelError
from moekd.objectives import (
    GradientKD,
    InteractiveContrastive,
    Ranking,
    RelationalKL,
    SoftBCE,
    contrastive_gradients,
    gradient_kd,
    interactive_contrastive,
    ranking,
    relational_kl,
    soft_bce,
    softmax_contrastive,
)

from .towers import arrays, cosine, pair_of, random_pair, softmax, tower_pool, tower_shapes, tower_step

ROWS, SEEDS, SCALES = st.integers(1, 6), st.integers(0, 10_000), st.floats(0.5, 40.0)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def bernoulli_kl(p: float, z: float) -> float:
    """KL divergence of Bernoulli(sigmoid(z)) from Bernoulli(p)."""
    q = sigmoid(z)
    terms = ((p, q), (1 - p, 1 - q))
    return sum(a * (math.log(a) - math.log(b)) for a, b in terms if a > 0)


@settings(max_examples=20, deadline=None)
@given(ROWS, SCALES, SEEDS)
def test_interactive_contrastive_equals_a_loop(rows: int, scale: float, seed: int) -> None:
    student, teacher = random_pair(rows, 4, seed), random_pair(rows, 4, seed + 1)
    (v, t), (big_v, big_t) = arrays(student), arrays(teacher)
    expected = [
        -sum(
            math.log(softmax([scale * cosine(mine[b], keys[j]) for j in range(rows)])[b])
            for mine, keys in ((v, big_t), (t, big_v))
        )
        / 2
        for b in range(rows)
    ]
    np.testing.assert_allclose(interactive_contrastive(student, teacher, scale).numpy(), expected, atol=1e-9)


def test_interactive_contrastive_of_the_teacher_itself_is_its_own_contrastive_loss() -> None:
    pair = random_pair(5, 4, 0)
    torch.testing.assert_close(interactive_contrastive(pair, pair, 9.0), softmax_contrastive(*pair, 9.0))


@settings(max_examples=20, deadline=None)
@given(ROWS, SCALES, SCALES, SEEDS)
def test_relational_kl_equals_a_loop(rows: int, g: float, big_g: float, seed: int) -> None:
    student, teacher = random_pair(rows, 4, seed)[0], random_pair(rows, 6, seed + 1)[0]
    s, y = student.numpy(), teacher.numpy()
    expected = []
    for b in range(rows):
        others = [j for j in range(rows) if j != b]
        q = softmax([g * cosine(s[b], s[j]) for j in others]) if others else []
        p = softmax([big_g * cosine(y[b], y[j]) for j in others]) if others else []
        expected.append(sum(a * (math.log(a) - math.log(c)) for a, c in zip(p, q, strict=True)))
    np.testing.assert_allclose(relational_kl(student, teacher, g, big_g).numpy(), expected, atol=1e-9)


def test_relational_kl_does_not_change_with_a_rotation_or_the_length_of_the_student() -> None:
    student, teacher = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    torch.testing.assert_close(relational_kl(student @ rotation * 7, teacher), relational_kl(student, teacher))
    loss = relational_kl(teacher @ rotation, teacher)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)


@settings(max_examples=20, deadline=None)
@given(ROWS, SEEDS)
def test_soft_bce_equals_a_loop(rows: int, seed: int) -> None:
    student, teacher = torch.randn(2, rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    soft, kl = [], []
    for z, y in zip(student.tolist(), teacher.tolist(), strict=True):
        terms = [(sigmoid(b), a) for a, b in zip(z, y, strict=True)]
        soft.append(-sum(p * math.log(sigmoid(a)) + (1 - p) * math.log(1 - sigmoid(a)) for p, a in terms))
        kl.append(sum(bernoulli_kl(p, a) for p, a in terms))
    np.testing.assert_allclose(soft_bce(student, teacher).numpy(), soft, atol=1e-8)
    np.testing.assert_allclose(soft_bce(student, teacher, "kl").numpy(), kl, atol=1e-8)


def test_soft_bce_has_no_gradient_where_the_models_agree() -> None:
    """The published variant has a gradient of -0.166 at p = 0.7; this one has none."""
    teacher = torch.tensor([[math.log(0.7 / 0.3)]], dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    soft_bce(student, teacher).sum().backward()
    assert student.grad.item() == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(ROWS, st.integers(1, 6), st.one_of(st.none(), st.integers(2, 8)), SEEDS)
def test_ranking_equals_a_loop(rows: int, candidates: int, top_k: int | None, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, candidates, generator=rng, dtype=torch.float64) * 3
    expected = []
    for z, y in zip(student.tolist(), teacher.tolist(), strict=True):
        best = sorted(range(candidates), key=lambda j: -y[j])[:top_k]
        pairs = [(i, j) for i in best for j in best if i < j]
        losses = [bernoulli_kl(sigmoid(y[i] - y[j]), z[i] - z[j]) for i, j in pairs]
        expected.append(sum(losses) / max(len(pairs), 1))
    np.testing.assert_allclose(ranking(student, teacher, top_k).numpy(), expected, atol=1e-8)


def test_ranking_looks_at_differences_only() -> None:
    teacher = torch.randn(3, 6, dtype=torch.float64)
    loss = ranking(teacher + 5, teacher)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
    assert (ranking(-teacher, teacher) > ranking(teacher * 0, teacher)).all()


def test_contrastive_gradients_are_those_of_autograd() -> None:
    """The gradient of each row's loss with respect to its own embedding, the other rows as constants."""
    image, text = (F.normalize(part) for part in random_pair(5, 4, 0))
    found = contrastive_gradients(image, text, 6.0)
    for b in range(5):
        for anchor, keys, gradients in ((image, text, found[0]), (text, image, found[1])):
            own = anchor[b].clone().requires_grad_()
            F.cross_entropy(6.0 * (keys @ own)[None], torch.tensor([b])).backward()
            torch.testing.assert_close(gradients[b], own.grad)


def test_gradient_kd_is_the_mean_squared_difference() -> None:
    student, teacher = random_pair(5, 4, 0), random_pair(5, 4, 1)
    mine, theirs = contrastive_gradients(*student, 6.0), contrastive_gradients(*teacher, 9.0)
    expected = sum(((a - b) ** 2).mean(1) for a, b in zip(mine, theirs, strict=True)) / 2
    torch.testing.assert_close(gradient_kd(student, teacher, 6.0, 9.0), expected)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: relational_kl(s[0], t[0], 5.0, 5.0),
        lambda s, t: soft_bce(s[0] @ s[1].T, t[0] @ t[1].T, "kl"),
        lambda s, t: ranking(s[0] @ s[1].T, t[0] @ t[1].T, 3),
        lambda s, t: gradient_kd(s, t, 5.0, 5.0),
    ],
    ids=["relational_kl", "soft_bce", "ranking", "gradient_kd"],
)
def test_floor_is_zero_with_no_gradient_and_gradients_are_right(loss) -> None:
    teacher = random_pair(5, 4, 3)
    student = tuple(part.clone().requires_grad_() for part in teacher)
    value = loss(student, teacher)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-10, rtol=0)
    for part in student:
        if part.grad is not None:
            torch.testing.assert_close(part.grad, torch.zeros_like(part), atol=1e-9, rtol=0)
    image, text = (part.requires_grad_() for part in random_pair(5, 4, 8))
    assert torch.autograd.gradcheck(lambda i, t: loss((i, t), teacher), (image, text), atol=1e-4)


def test_objectives_read_scales_biases_and_modalities() -> None:
    pool = tower_pool(9)
    step = tower_step(pool)
    mine, theirs = pair_of(step.student), pair_of(step.signals("t0"))
    z, y = (F.normalize(i) @ F.normalize(t).T for i, t in (mine, theirs))
    found = SoftBCE(student_scale=4.0, bias=-2.0)(step)["soft_bce"]
    torch.testing.assert_close(found, soft_bce(4 * z - 2, 6 * y - 3))
    found = SoftBCE(student_scale="model", teacher_scale=20.0, teacher_bias=-7.0, form="kl")(step)["soft_bce"]
    torch.testing.assert_close(found, soft_bce(8 * z - 3, 20 * y - 7, "kl"), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(SoftBCE()(step)["soft_bce"], soft_bce(10 * z - 10, 6 * y - 3))
    both = torch.stack([relational_kl(s, t, 5.0, 7.0) for s, t in zip(mine, theirs, strict=True)]).mean(0)
    objective = RelationalKL(modalities=["image", "text"], student_scale=5.0, teacher_scale=7.0)
    torch.testing.assert_close(objective(step)["relational_kl"], both)
    expected = (ranking(8 * z, 6 * y, 3) + ranking(8 * z.T, 6 * y.T, 3)) / 2
    torch.testing.assert_close(Ranking(top_k=3, student_scale="model")(step)["ranking"], expected)


@pytest.mark.parametrize("kind", [InteractiveContrastive, GradientKD])
def test_heads_for_a_teacher_of_another_width(kind) -> None:
    step = tower_step(tower_pool(9))
    with pytest.raises(ModelError, match="'image' has 6 numbers in the student and 9 in teacher 't0'"):
        kind()(step)
    objective = kind("t0", shapes=tower_shapes(9))
    (loss,) = objective(step).values()
    loss.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in objective.heads.parameters())
    image, text = (objective.heads.head("t0", m)(step.student.embeddings[m]) for m in ("image", "text"))
    theirs = pair_of(step.signals("t0"))
    expected = (
        interactive_contrastive((image, text), theirs, 1 / 0.07)
        if kind is InteractiveContrastive
        else gradient_kd((image, text), theirs, 1 / 0.07, 6.0)
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="top_k must be at least 2"):
        Ranking(top_k=1)
    with pytest.raises(ConfigError, match="scales must be positive"):
        RelationalKL(teacher_scale=0.0)
    with pytest.raises(ConfigError, match="modalities is empty"):
        RelationalKL(modalities=[])
