"""Probes against plain numpy: votes of neighbours, and Newton's method for the linear classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekd.errors import DataError
from moekd.evaluation import accuracy, knn_votes, linear_probe


def loop_votes(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, k: int, temperature: float
) -> np.ndarray:
    train = train / np.linalg.norm(train, axis=1, keepdims=True)
    votes = np.zeros((len(test), classes))
    for row, point in enumerate(test / np.linalg.norm(test, axis=1, keepdims=True)):
        cosines = train @ point
        for index in np.argsort(-cosines)[:k]:
            votes[row, labels[index]] += np.exp(cosines[index] / temperature)
    return votes / votes.sum(axis=1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 9), st.floats(0.05, 1.0), st.integers(0, 10_000))
def test_knn_equals_a_loop(rows: int, k: int, chunk: int, temperature: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    train, test = torch.randn(rows, 4, generator=rng), torch.randn(7, 4, generator=rng)
    labels = torch.randint(0, 3, (rows,), generator=rng)
    found = knn_votes(train * 9, labels, test, 3, k, temperature, chunk)
    expected = loop_votes(train.double().numpy(), labels.numpy(), test.double().numpy(), 3, k, temperature)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_near_neighbour_outweighs_two_far_ones() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    votes = knn_votes(train, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.1]]), 2, k=3)
    assert votes.argmax(1).item() == 0
    assert knn_votes(train, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.1]]), 2, k=3, temperature=10.0)[0, 1] > 0.5


def newton(features: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> tuple[np.ndarray, float]:
    """Multinomial logistic regression by damped Newton steps; returns [W | b] flattened and the objective."""
    n, d = features.shape
    x = np.hstack([features, np.ones((n, 1))])
    decay = np.tile(np.append(np.full(d, l2), 0.0), classes)
    target = np.eye(classes)[labels]

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ theta.reshape(classes, -1).T
        z = z - z.max(1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        return -(target * log_p).sum() / n + 0.5 * (decay * theta**2).sum(), np.exp(log_p)

    theta = np.zeros(classes * (d + 1))
    for _ in range(60):
        value, p = objective(theta)
        gradient = ((p - target).T @ x).ravel() / n + decay * theta
        blocks = [
            [(x * (p[:, i] * ((i == j) - p[:, j]))[:, None]).T @ x / n for j in range(classes)] for i in range(classes)
        ]
        step = np.linalg.solve(np.block(blocks) + np.diag(decay) + 1e-9 * np.eye(len(theta)), gradient)
        rate = 1.0
        while objective(theta - rate * step)[0] > value and rate > 1e-8:
            rate /= 2
        theta = theta - rate * step
    return theta.reshape(classes, -1), objective(theta)[0]


@pytest.mark.parametrize(("l2", "seed"), [(1e-1, 0), (1e-3, 1)])
def test_linear_probe_finds_the_optimum(l2: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(60, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, -3.0]
    labels = (features[:, 0] + rng.normal(size=60) > 0).astype(int) + (rng.random(60) > 0.7)
    standard = (features - features.mean(0)) / features.std(0)
    weights, value = newton(standard, labels, 3, l2)
    probe = linear_probe(torch.tensor(features), torch.tensor(labels), 3, l2)
    assert probe.loss == pytest.approx(value, abs=1e-8)
    np.testing.assert_allclose(probe.weight.numpy(), weights[:, :-1], atol=1e-3)
    logits = standard @ weights[:, :-1].T + weights[:, -1]
    found = probe(torch.tensor(features)).softmax(1).numpy()
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-3)


def test_linear_probe_is_deterministic_and_leaves_the_features_alone() -> None:
    features = torch.randn(50, 6, requires_grad=True)
    labels = torch.randint(0, 4, (50,))
    with torch.no_grad():
        first, second = linear_probe(features, labels, 4), linear_probe(features, labels, 4)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert features.grad is None
    assert not first.weight.requires_grad


def test_separable_features_are_separated() -> None:
    features = torch.cat([torch.randn(30, 5) + 6 * axis for axis in torch.eye(5)[:3]])
    labels = torch.arange(3).repeat_interleave(30)
    assert accuracy(linear_probe(features, labels, 3)(features), labels) > 0.99
    assert accuracy(knn_votes(features, labels, features, 3), labels) > 0.9


def test_a_constant_channel_does_no_harm() -> None:
    features = torch.cat([torch.randn(20, 2), torch.full((20, 1), 5.0)], dim=1)
    probe = linear_probe(features, torch.randint(0, 2, (20,)), 2)
    assert probe.weight.isfinite().all()
    assert torch.equal(probe.weight[:, 2], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("train", "labels", "test", "message"),
    [
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), torch.ones(2, 4), "needs features"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), torch.ones(2, 2), "needs features"),
        (torch.ones(3, 2), torch.zeros(2, dtype=torch.int64), torch.ones(2, 2), r"int64 labels \[3\]"),
        (torch.ones(3, 2), torch.tensor([0, -1, 1]), torch.ones(2, 2), "leave rows without a label out"),
        (torch.full((3, 2), torch.inf), torch.zeros(3, dtype=torch.int64), torch.ones(2, 2), "finite features"),
    ],
)
def test_what_does_not_fit_is_refused(train: Tensor, labels: Tensor, test: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        knn_votes(train, labels, test, 2)


def test_options_that_make_no_sense_are_refused() -> None:
    features, labels = torch.ones(2, 2), torch.tensor([0, 1])
    with pytest.raises(DataError, match="knn needs k >= 1"):
        knn_votes(features, labels, features, 2, k=0)
    with pytest.raises(DataError, match="l2 >= 0"):
        linear_probe(features, labels, 2, l2=-1.0)
    with pytest.raises(DataError, match="one label a row"):
        accuracy(features, labels[:1])
