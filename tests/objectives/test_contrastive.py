"""Contrastive learning: both forms against loops, scales that learn, degenerate batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError, ModelError
from moekd.objectives import Contrastive, reduce
from moekd.objectives.contrastive import sigmoid_contrastive, softmax_contrastive
from moekd.teachers import TeacherPool

from ..builders import make_pool, make_step
from .towers import arrays, cosine, make_towers, pair_of, random_pair, softmax, tower_pool, tower_step

ROWS, DIMS, SEEDS = st.integers(1, 6), st.integers(1, 5), st.integers(0, 10_000)


@settings(max_examples=25, deadline=None)
@given(ROWS, DIMS, st.floats(0.5, 60.0), SEEDS)
def test_softmax_form_equals_a_loop(rows: int, dim: int, scale: float, seed: int) -> None:
    pair = random_pair(rows, dim, seed)
    image, text = arrays(pair)
    expected = []
    for b in range(rows):
        from_image = softmax([scale * cosine(image[b], text[j]) for j in range(rows)])[b]
        from_text = softmax([scale * cosine(text[b], image[j]) for j in range(rows)])[b]
        expected.append(-(math.log(from_image) + math.log(from_text)) / 2)
    np.testing.assert_allclose(softmax_contrastive(*pair, scale).numpy(), expected, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(ROWS, DIMS, st.floats(0.5, 30.0), st.floats(-12.0, 3.0), SEEDS)
def test_sigmoid_form_equals_a_loop(rows: int, dim: int, scale: float, bias: float, seed: int) -> None:
    pair = random_pair(rows, dim, seed)
    image, text = arrays(pair)
    expected = [
        sum(
            math.log1p(math.exp(-(1 if b == j else -1) * (scale * cosine(image[b], text[j]) + bias)))
            for j in range(rows)
        )
        for b in range(rows)
    ]
    np.testing.assert_allclose(sigmoid_contrastive(*pair, scale, bias).numpy(), expected, atol=1e-9)


def test_known_values() -> None:
    axes = torch.eye(2)
    loss = softmax_contrastive(axes, axes, 2.0)
    torch.testing.assert_close(loss, torch.full((2,), math.log(1 + math.exp(-2.0))))
    loss = sigmoid_contrastive(axes, axes, 10.0, -10.0)
    torch.testing.assert_close(loss, torch.full((2,), math.log(2.0) + math.log1p(math.exp(-10.0))))
    same = torch.ones(5, 3)
    torch.testing.assert_close(softmax_contrastive(same, same, 30.0), torch.full((5,), math.log(5.0)))


@pytest.mark.parametrize(
    "loss", [lambda i, t: softmax_contrastive(i, t, 3.0), lambda i, t: sigmoid_contrastive(i, t, 3.0, -1.0)]
)
def test_gradients_in_double_precision(loss) -> None:
    image, text = (part.requires_grad_() for part in random_pair(4, 3, 0))
    assert torch.autograd.gradcheck(loss, (image, text))


def test_one_row_and_embeddings_of_no_length_are_finite() -> None:
    image, text = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4)
    loss = softmax_contrastive(image, text, 50.0)
    loss.sum().backward()
    assert loss.item() == 0.0
    torch.testing.assert_close(image.grad, torch.zeros(1, 4))
    image = torch.zeros(3, 4, requires_grad=True)
    loss = softmax_contrastive(image, torch.randn(3, 4), 50.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert image.grad.isfinite().all()


def test_objective_reads_the_student_and_no_teacher() -> None:
    step = tower_step(TeacherPool({}))
    image, text = pair_of(step.student)
    torch.testing.assert_close(Contrastive()(step)["contrastive"], softmax_contrastive(image, text, 1 / 0.07))
    own = step.student.heads["logit_scale"][0]
    torch.testing.assert_close(Contrastive(scale="model")(step)["contrastive"], softmax_contrastive(image, text, own))
    found = Contrastive("sigmoid")(step)["contrastive"]
    torch.testing.assert_close(found, sigmoid_contrastive(image, text, 10.0, -10.0))
    found = Contrastive("sigmoid", scale="model")(step)["contrastive"]
    torch.testing.assert_close(found, sigmoid_contrastive(image, text, own, -3.0))
    found = Contrastive("sigmoid", scale=4.0, initial_bias=-2.0)(step)["contrastive"]
    torch.testing.assert_close(found, sigmoid_contrastive(image, text, 4.0, -2.0))
    assert step.pool.forwards == 0


def test_learned_scale_learns_and_stays_below_its_maximum() -> None:
    objective, student = Contrastive(initial_scale=90.0), make_towers()
    pool = TeacherPool({})
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    assert objective.scale.log_scale is not None
    with torch.no_grad():
        objective.scale.log_scale.fill_(9.0)
    loss = reduce(objective(tower_step(pool, student))["contrastive"])
    expected = softmax_contrastive(*pair_of(tower_step(pool, student).student), 100.0).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    gradient = objective.scale.log_scale.grad.item()
    assert gradient > 0, "random pairs want a lower scale, and the bound must not stop the gradient"
    optimizer.step()
    assert objective.scale.log_scale.item() == pytest.approx(math.log(100.0) - gradient, rel=1e-5)


def test_a_batch_of_the_model_learns() -> None:
    objective, student = Contrastive(), make_towers()
    optimizer = torch.optim.Adam([*student.parameters(), *objective.parameters()], lr=0.05)
    losses = []
    for _ in range(30):
        loss = reduce(objective(tower_step(TeacherPool({}), student))["contrastive"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"contrastive needs the embedding 'image', .*embeddings: none"):
        Contrastive()(make_step(make_pool(masked=False)))
    with pytest.raises(ModelError, match="did you mean 'text'"):
        Contrastive(text="texts")(tower_step(TeacherPool({})))
    with pytest.raises(ModelError, match="must have the same shape"):
        softmax_contrastive(torch.ones(2, 3), torch.ones(2, 4), 1.0)
    for options in ({"scale": -1.0}, {"scale": 0.0}, {"initial_scale": 0.0}, {"max_scale": -3.0}):
        with pytest.raises(ConfigError, match="must be a positive number"):
            Contrastive(**options)


@pytest.mark.parametrize(
    ("on", "names"), [("teachers", ["t0", "t1"]), ("all", ["student", "t0", "t1"]), ("t1", ["t1"])]
)
def test_teachers_can_learn_from_pairs(on: str, names: list[str]) -> None:
    step = tower_step(tower_pool(6, 9))
    found = Contrastive(scale="model", on=on)(step)
    keys = ["contrastive" if name == "student" else f"contrastive/{name}" for name in names]
    assert list(found) == keys
    for key, name in zip(keys, names, strict=True):
        said = step.signals(name)
        expected = softmax_contrastive(*pair_of(said), said.heads["logit_scale"][:, None])
        torch.testing.assert_close(found[key], expected)
    assert list(Contrastive(on=on).variants(step.pool)) == [name for name in names if name != "student"]
