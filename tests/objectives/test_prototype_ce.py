"""Class means within the batch: loops as oracle, the row itself left out, examples apart, rows that do not count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moekd.errors import ConfigError
from moekd.model import Model
from moekd.objectives import PrototypeCE, prototype_ce, prototype_scores, reduce
from moekd.signals import Signals
from moekd.step import Models, Step
from moekd.teachers import TeacherPool


class Told(torch.nn.Module):
    """Says what it is given."""

    def forward(self, x: torch.Tensor) -> Signals:
        """Return the input as the embedding `image`, and a scale of 4."""
        return Signals(embeddings={"image": x}, heads={"logit_scale": torch.full((len(x),), 4.0)})


def step(rows: torch.Tensor, label: list[int], labelled: list[bool] | None = None) -> Step:
    batch = {"x": rows, "label": torch.tensor(label), "id": torch.arange(len(label))}
    if labelled is not None:
        batch["labelled"] = torch.tensor(labelled)
    return Step(batch, Models(Model(Told(), ["x"]), TeacherPool({})))


def test_scores_are_products_with_class_means() -> None:
    query, support, labels = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 2, 2, 0, 0])
    scores = prototype_scores(query, support, labels, 4)
    for c in (0, 2):
        torch.testing.assert_close(scores[:, c], query @ support[labels == c].mean(dim=0))
    assert (scores[:, [1, 3]] < -1e29).all()


def test_one_shot_a_class_on_itself_is_always_right() -> None:
    rows, labels = F.normalize(torch.randn(6, 8)), torch.arange(6)
    scores = prototype_scores(rows, rows, labels, 6)
    assert torch.equal(scores.argmax(dim=1), labels)
    losses = [prototype_ce(rows, labels, rows, labels, 6, scale)[0].mean().item() for scale in (1.0, 10.0, 1000.0)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1e-3


def test_each_row_is_left_out_of_its_own_mean() -> None:
    rows, label = torch.randn(7, 5), [0, 1, 0, 1, 1, 2, 0]
    loss = PrototypeCE(3)(step(rows, label))["prototype_ce"]
    unit, labels = F.normalize(rows), torch.tensor(label)
    assert loss.mask.tolist() == [True, True, True, True, True, False, True]
    for row in range(7):
        if label[row] == 2:
            continue
        others = [j for j in range(7) if j != row]
        scores = [4 * unit[row] @ unit[[j for j in others if label[j] == c]].mean(dim=0) for c in range(3)]
        torch.testing.assert_close(loss.values[row], -torch.stack(scores).log_softmax(0)[labels[row]])


def test_examples_and_queries_can_be_apart() -> None:
    rows, label = torch.randn(6, 5), [0, 1, 0, 1, 0, 2]
    loss = PrototypeCE(3, shots=1, scale=2.0)(step(rows, label))["prototype_ce"]
    unit = F.normalize(rows)
    assert loss.mask.tolist() == [False, False, True, True, True, False]
    expected = F.cross_entropy(2 * unit[[2, 3, 4]] @ unit[[0, 1, 5]].T, torch.tensor([0, 1, 0]), reduction="none")
    torch.testing.assert_close(loss.values[[2, 3, 4]], expected)


def test_rows_without_a_label_take_no_part() -> None:
    rows = torch.randn(5, 4)
    few = PrototypeCE(2)(step(rows, [0, 0, 1, 1, -1]))["prototype_ce"]
    hidden = PrototypeCE(2)(step(rows, [0, 0, 1, 1, 0], [True] * 4 + [False]))["prototype_ce"]
    torch.testing.assert_close(reduce(few), reduce(hidden))
    torch.testing.assert_close(reduce(few), reduce(PrototypeCE(2)(step(rows[:4], [0, 0, 1, 1]))["prototype_ce"]))


def test_a_batch_in_which_no_row_counts_has_no_gradient() -> None:
    rows = torch.randn(3, 4, requires_grad=True)
    loss = reduce(PrototypeCE(3)(step(rows, [0, 1, 2]))["prototype_ce"])
    loss.backward()
    assert loss == 0
    assert not rows.grad.any()
    nothing = reduce(PrototypeCE(3)(step(rows, [-1, -1, -1]))["prototype_ce"])
    assert nothing == 0
    with pytest.raises(ConfigError, match="at least 1, found 0"):
        PrototypeCE(3, shots=0)
