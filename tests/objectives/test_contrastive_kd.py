"""Soft contrastive distillation: the form of open_clip and the KL form, scales, averages over teachers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import DistillClipLoss

from moekd.errors import ConfigError, ModelError
from moekd.objectives import (
    AffinityMimicking,
    ContrastiveKD,
    affinity_mimicking,
    contrastive_kd,
    soft_targets,
    softmax_contrastive,
)

from .towers import arrays, cosine, pair_of, random_pair, softmax, tower_pool, tower_step


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6),
    st.floats(0.5, 60.0),
    st.floats(0.5, 60.0),
    st.sampled_from(["soft_ce", "kl"]),
    st.integers(0, 10_000),
)
def test_equals_a_loop_with_other_widths(rows: int, g: float, big_g: float, form, seed: int) -> None:
    student, teacher = random_pair(rows, 3, seed), random_pair(rows, 5, seed + 1)
    s, t = arrays(student), arrays(teacher)
    expected = np.zeros(rows)
    for a, b in ((0, 1), (1, 0)):
        for row in range(rows):
            q = softmax([g * cosine(s[a][row], s[b][j]) for j in range(rows)])
            p = softmax([big_g * cosine(t[a][row], t[b][j]) for j in range(rows)])
            entropy = sum(x * math.log(x) for x in p if x > 0) if form == "kl" else 0.0
            expected[row] += (entropy - sum(x * math.log(y) for x, y in zip(p, q, strict=True) if x > 0)) / 2
    np.testing.assert_allclose(contrastive_kd(student, teacher, g, big_g, form).numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("g", "big_g"), [(20.0, 60.0), (100.0, 100.0), (1.0, 14.3)])
def test_loss_and_gradients_are_those_of_open_clip(dtype: torch.dtype, g: float, big_g: float) -> None:
    """Both parts of open_clip's own DistillClipLoss, and what they do to the student's embeddings and scale."""
    student, teacher = random_pair(7, 4, 0, dtype), random_pair(7, 9, 1, dtype)
    big_v, big_t = (F.normalize(part, dim=-1) for part in teacher)
    gradients, values = [], []
    for ours in (True, False):
        inputs = [
            *(part.clone().requires_grad_() for part in student),
            torch.tensor(g, dtype=dtype, requires_grad=True),
        ]
        v, t, scale = inputs
        if ours:
            losses = (softmax_contrastive(v, t, scale).mean(), contrastive_kd((v, t), teacher, scale, big_g).mean())
        else:
            loss = DistillClipLoss()
            losses = loss(F.normalize(v, dim=-1), F.normalize(t, dim=-1), scale, big_v, big_t, torch.tensor(big_g))
        values.append(torch.stack(list(losses)))
        gradients.append(torch.autograd.grad(losses[0] + 2 * losses[1], inputs))
    torch.testing.assert_close(*values, atol=1e-6, rtol=1e-6)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_text_rows_are_normalised_on_their_own() -> None:
    """Targets of the text side are a softmax over images, not the transpose of the image side's."""
    student, teacher = random_pair(5, 4, 0), random_pair(5, 4, 1)
    swapped = contrastive_kd(student[::-1], teacher[::-1], 5.0, 5.0)
    torch.testing.assert_close(contrastive_kd(student, teacher, 5.0, 5.0), swapped)


def test_floors() -> None:
    pair = random_pair(6, 4, 3)
    student = tuple(part.clone().requires_grad_() for part in pair)
    loss = contrastive_kd(student, pair, 10.0, 10.0, "kl")
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
    soft = contrastive_kd(student, pair, 10.0, 10.0)
    z = 10.0 * F.normalize(pair[0]) @ F.normalize(pair[1]).T
    entropy = [-(x.softmax(1) * x.log_softmax(1)).sum(1) for x in (z, z.T)]
    torch.testing.assert_close(soft, (entropy[0] + entropy[1]) / 2)
    (loss + soft).sum().backward()
    for part in student:
        torch.testing.assert_close(part.grad, torch.zeros_like(part), atol=1e-10, rtol=0)


def test_both_forms_have_the_same_gradient() -> None:
    gradients = []
    for form in ("soft_ce", "kl"):
        student = tuple(part.requires_grad_() for part in random_pair(5, 4, 0))
        contrastive_kd(student, random_pair(5, 4, 1), 10.0, 10.0, form).sum().backward()
        gradients.append(torch.stack([part.grad for part in student]))
    torch.testing.assert_close(*gradients)


def test_mean_over_teachers_is_the_loss_against_the_mean_of_their_probabilities() -> None:
    z, teachers = torch.randn(4, 6), torch.randn(3, 4, 6)
    mixed = torch.stack([t.softmax(1) for t in teachers]).mean(0).log()
    losses = torch.stack([soft_targets(z, t) for t in teachers]).mean(0)
    torch.testing.assert_close(losses, soft_targets(z, mixed), rtol=1e-5, atol=1e-5)


def test_gradient_in_double_precision() -> None:
    student = [part.requires_grad_() for part in random_pair(4, 3, 0)]
    teacher = random_pair(4, 5, 1)
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda i, t, g: contrastive_kd((i, t), teacher, g, 7.0), (*student, scale))


def test_each_teacher_is_read_with_its_own_scale() -> None:
    pool = tower_pool(4, 9)
    step = tower_step(pool)
    mine = pair_of(step.student)
    theirs = {name: pair_of(step.signals(name)) for name in pool.names}
    g = 1 / 0.07
    for option, scales in (
        ("model", {"t0": 6.0, "t1": 10.0}),
        (30.0, {"t0": 30.0, "t1": 30.0}),
        ({"t0": 70.0, "t1": 60.0}, {"t0": 70.0, "t1": 60.0}),
    ):
        expected = [contrastive_kd(mine, theirs[name], g, scale) for name, scale in scales.items()]
        found = ContrastiveKD(teacher_scale=option)(step)["contrastive_kd"]
        torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)
    one = ContrastiveKD("t1", "kl", student_scale="model", teacher_scale=5.0)
    assert one.variants(pool) == ["t1"]
    torch.testing.assert_close(one(step)["contrastive_kd"], contrastive_kd(mine, theirs["t1"], 8.0, 5.0, "kl"))


def test_affinity_is_the_same_loss_at_one_scale() -> None:
    pool = tower_pool(4)
    step = tower_step(pool)
    expected = contrastive_kd(pair_of(step.student), pair_of(step.signals("t0")), 50.0, 50.0)
    torch.testing.assert_close(AffinityMimicking()(step)["affinity"], expected)
    other = AffinityMimicking("t0", scale=7.0)(step)["affinity"]
    torch.testing.assert_close(other, affinity_mimicking(pair_of(step.student), pair_of(step.signals("t0")), 7.0))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no number for teacher 't1'; did you mean 't0'"):
        ContrastiveKD(teacher_scale={"t0": 70.0})(tower_step(tower_pool(4, 4)))
    for wrong in ("own", 0.0, {"t0": -1.0}):
        with pytest.raises(ConfigError, match="'model' or positive numbers"):
            ContrastiveKD(teacher_scale=wrong)
    with pytest.raises(ConfigError, match=r"affinity\.scale must be positive"):
        AffinityMimicking(scale=0.0)
    with pytest.raises(ModelError, match="different numbers of rows"):
        contrastive_kd(random_pair(3, 2, 0), random_pair(4, 2, 0), 1.0, 1.0)
