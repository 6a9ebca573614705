"""Rows that are the same thing: no negatives of each other, in one process and in several.

Shapes: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moekd.errors import DataError
from moekd.objectives import (
    AffinityMimicking,
    Contrastive,
    ContrastiveKD,
    GradientKD,
    InteractiveContrastive,
    Objective,
    Ranking,
    RelationalKL,
    SoftBCE,
    contrastive_gradients,
    interactive_contrastive,
    softmax_contrastive,
)
from moekd.objectives.equal_rows import HIDDEN, equal_rows, hide, matching_loss

from .towers import arrays, cosine, random_pair, softmax, tower_pool, tower_step

KINDS: dict[str, Callable[..., Objective]] = {
    "contrastive": Contrastive,
    "contrastive_sigmoid": lambda **o: Contrastive("sigmoid", **o),
    "contrastive_kd": lambda **o: ContrastiveKD(form="kl", **o),
    "affinity": AffinityMimicking,
    "soft_bce": lambda **o: SoftBCE(form="kl", **o),
    "ranking": lambda **o: Ranking(top_k=None, **o),
    "relational_kl": RelationalKL,
    "interactive_contrastive": InteractiveContrastive,
    "gradient_kd": GradientKD,
}
#: Losses whose target is spread over equal rows; the others leave them out.
SPREAD = ("contrastive", "contrastive_sigmoid", "interactive_contrastive", "gradient_kd")


def test_equal_rows_of_a_batch() -> None:
    batch = {"id": torch.arange(4), "concept": torch.tensor([[7], [3], [7], [1]])}
    expected = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    found = equal_rows(batch, "concept", "test")
    assert found is not None
    assert found.int().tolist() == expected
    assert equal_rows(batch, None, "test") is None


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "the batch has no field 'concept'; fields: id"),
        ({"concepts": torch.zeros(2).long()}, "did you mean 'concepts'"),
        ({"concept": torch.zeros(2)}, r"must hold one integer a row, found torch.float32 \(2,\)"),
        ({"concept": torch.zeros(2, 3).long()}, r"found torch.int64 \(2, 3\)"),
        ({"concept": ["a", "b"]}, "found list"),
    ],
)
def test_other_fields_are_refused(batch: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        equal_rows({"id": torch.arange(2)} | batch, "concept", "contrastive")


def test_contrastive_spreads_its_target_over_equals() -> None:
    pair, groups = random_pair(5, 3, 0), [0, 1, 0, 2, 0]
    image, text = arrays(pair)
    expected = np.zeros(5)
    for a, b in ((image, text), (text, image)):
        for row in range(5):
            q = softmax([4.0 * cosine(a[row], b[j]) for j in range(5)])
            positives = [j for j in range(5) if groups[j] == groups[row]]
            expected[row] -= sum(math.log(q[j]) for j in positives) / len(positives) / 2
    equal = torch.tensor(groups)[:, None] == torch.tensor(groups)
    np.testing.assert_allclose(softmax_contrastive(*pair, 4.0, equal).numpy(), expected, atol=1e-10)


def test_smallest_loss_is_the_logarithm_of_the_number_of_equals() -> None:
    equal = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    logits = torch.where(equal, 50.0, -50.0).requires_grad_()
    loss = matching_loss(logits, torch.arange(3), equal)
    torch.testing.assert_close(loss, torch.tensor([math.log(2), math.log(2), 0.0]))
    loss.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(3, 3), atol=1e-6, rtol=0)


def loss_of(objective: Objective, concepts: list[int]) -> Tensor:
    step = tower_step(tower_pool(6, 6), rows=len(concepts))
    step.batch["concept"] = torch.tensor(concepts)[:, None]  # type: ignore[index]
    (loss,) = objective(step).values()
    return loss


@pytest.mark.parametrize("name", KINDS)
def test_without_equals_nothing_changes(name: str) -> None:
    plain, same = KINDS[name](), KINDS[name](same="concept")
    torch.testing.assert_close(loss_of(same, [5, 4, 3, 2, 1]), loss_of(plain, [5, 4, 3, 2, 1]))


@pytest.mark.parametrize("name", [name for name in KINDS if name not in SPREAD])
def test_what_is_left_out_changes_nothing(name: str) -> None:
    """Rows 1 and 3 are the same thing as row 0: it is compared with rows 2 and 4 (and itself) alone."""
    full = loss_of(KINDS[name](same="concept"), [7, 7, 2, 7, 1])
    step = tower_step(tower_pool(6, 6), rows=5)
    rows = torch.tensor([0, 2, 4])
    for signals in (step.student, *(step.signals(n) for n in step.pool.names)):
        for key, value in list(signals.embeddings.items()):
            signals.embeddings[key] = value[rows]
        for key, value in list(signals.heads.items()):
            signals.heads[key] = value[rows]
    (part,) = KINDS[name]()(step).values()
    torch.testing.assert_close(full[0], part[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_of_one_thing_is_finite(name: str) -> None:
    objective = KINDS[name](same="concept")
    loss = loss_of(objective, [3, 3, 3, 3])
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_sigmoid_takes_equals_for_partners() -> None:
    same = loss_of(Contrastive("sigmoid", same="concept", scale=1.0, initial_bias=0.0), [1, 1])
    step = tower_step(tower_pool(6), rows=2)
    image, text = (torch.nn.functional.normalize(step.student.embeddings[key]) for key in ("image", "text"))
    torch.testing.assert_close(same, -torch.nn.functional.logsigmoid(image @ text.T).sum(1))


def test_hidden_pairs_get_no_gradient_and_no_probability() -> None:
    scores = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    hidden = torch.tensor([[False, True, False], [False, False, True]])
    probabilities = hide(scores, hidden).softmax(1)
    assert float(probabilities.detach()[hidden].abs().max()) == 0.0
    probabilities.square().sum().backward()
    assert scores.grad is not None
    assert not scores.grad[hidden].any()
    assert torch.isfinite(torch.tensor(HIDDEN, dtype=torch.float32))


def test_spread_gradients_are_those_of_the_spread_loss() -> None:
    """`contrastive_gradients` is the derivative of each row's own loss with respect to its anchor."""
    pair, equal = random_pair(4, 3, 2), torch.tensor([0, 1, 0, 2])[:, None] == torch.tensor([0, 1, 0, 2])
    image, text = (torch.nn.functional.normalize(part) for part in pair)
    for row in range(4):
        anchor = image[row].clone().requires_grad_()
        matching_loss(5.0 * anchor[None] @ text.T, torch.tensor([row]), equal[row : row + 1]).sum().backward()
        torch.testing.assert_close(contrastive_gradients(*pair, 5.0, equal)[0][row], anchor.grad)


def test_interactive_contrastive_spreads_its_target_too() -> None:
    student, teacher = random_pair(4, 3, 0), random_pair(4, 3, 1)
    equal = torch.tensor([0, 1, 0, 2])[:, None] == torch.tensor([0, 1, 0, 2])
    image = matching_loss(
        3.0 * torch.nn.functional.normalize(student[0]) @ torch.nn.functional.normalize(teacher[1]).T,
        torch.arange(4),
        equal,
    )
    text = matching_loss(
        3.0 * torch.nn.functional.normalize(student[1]) @ torch.nn.functional.normalize(teacher[0]).T,
        torch.arange(4),
        equal,
    )
    torch.testing.assert_close(interactive_contrastive(student, teacher, 3.0, equal), (image + text) / 2)
