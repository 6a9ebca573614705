"""Routing diagnostics against hand-computed values and a naive loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from moekd.errors import DataError
from moekd.evaluation import RoutingStatistics


def test_hand_computed_values():
    probs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    statistics = RoutingStatistics(["a", "b"], 3)
    statistics.update(probs, torch.tensor([[0], [0], [1]]), torch.tensor([0, 0, 1]))
    result = statistics.compute()
    assert result["variants"] == ["a", "b"]
    assert result["shares"] == pytest.approx([2 / 3, 1 / 3])
    assert result["load_cv"] == pytest.approx(math.sqrt(2) / 3)  # sd (n - 1) of 2/3, 1/3 over the mean 1/2
    entropies = [math.log(2), 0.0, 0.25 * math.log(4) + 0.75 * math.log(4 / 3)]
    assert result["entropy"] == pytest.approx(sum(entropies) / 3)
    assert result["by_class"][0] == [1.0, 0.0]
    assert result["by_class"][1] == [0.0, 1.0]
    assert all(math.isnan(share) for share in result["by_class"][2])
    assert result["chosen_loss"] is None
    assert result["oracle_agreement"] is None


@pytest.mark.parametrize("k", [1, 2])
def test_losses_match_a_naive_loop(k):
    rows, variants, classes = 40, 4, 5
    logits, labels = torch.randn(rows, variants, classes), torch.randint(0, classes, (rows,))
    labels[::7] = -1
    probs = torch.randn(rows, variants).softmax(1)
    chosen = probs.topk(k).indices
    statistics = RoutingStatistics([*"abcd"], classes)
    for part in torch.arange(rows).split(16):
        statistics.update(probs[part], chosen[part], labels[part], logits[part])
    result = statistics.compute()
    chosen_losses, best, agree, use = [], [], [], torch.zeros(classes, variants)
    for row in range(rows):
        if labels[row] < 0:
            continue
        losses = [F.cross_entropy(logits[row, t], labels[row]).item() for t in range(variants)]
        picks = chosen[row].tolist()
        chosen_losses.append(sum(losses[t] for t in picks) / k)
        best.append(min(losses))
        agree.append(losses.index(min(losses)) in picks)
        for t in picks:
            use[labels[row], t] += 1 / k
    assert result["chosen_loss"] == pytest.approx(sum(chosen_losses) / len(best), rel=1e-5)
    assert result["oracle_loss"] == pytest.approx(sum(best) / len(best), rel=1e-5)
    assert result["oracle_agreement"] == pytest.approx(sum(agree) / len(agree))
    assert result["chance_agreement"] == pytest.approx(k / variants)
    assert result["mean_loss"] == pytest.approx(sum(result["variant_loss"]) / variants)
    torch.testing.assert_close(torch.tensor(result["by_class"]), use / use.sum(1, keepdim=True))
    assert result["shares"] == pytest.approx((chosen.flatten().bincount(minlength=variants) / rows / k).tolist())


def test_dense_selection_uses_the_probabilities():
    probs = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    statistics = RoutingStatistics(["a", "b"], 2)
    statistics.update(probs, None, torch.tensor([0, 1]))
    assert statistics.compute()["shares"] == pytest.approx([0.4, 0.6])


def test_rows_without_a_chosen_teacher_do_not_count():
    statistics = RoutingStatistics(["a", "b"], 2)
    chosen = torch.tensor([[-1, -1], [1, -1]])
    statistics.update(torch.full((2, 2), 0.5), chosen, torch.tensor([0, 0]), torch.randn(2, 2, 2))
    result = statistics.compute()
    assert result["shares"] == [0.0, 1.0]
    assert result["by_class"][0] == [0.0, 1.0]
    assert result["chance_agreement"] == 0.5


def test_permuting_the_teachers_permutes_the_result():
    probs, labels, logits = torch.randn(20, 3).softmax(1), torch.randint(0, 2, (20,)), torch.randn(20, 3, 2)
    order = torch.tensor([2, 0, 1])
    plain, permuted = RoutingStatistics([*"abc"], 2), RoutingStatistics([*"cab"], 2)
    plain.update(probs, probs.argmax(1, keepdim=True), labels, logits)
    permuted.update(probs[:, order], probs[:, order].argmax(1, keepdim=True), labels, logits[:, order])
    one, two = plain.compute(), permuted.compute()
    assert two["shares"] == pytest.approx([one["shares"][i] for i in order])
    assert two["oracle_agreement"] == one["oracle_agreement"]
    assert two["chosen_loss"] == pytest.approx(one["chosen_loss"])


def test_one_variant_has_no_imbalance():
    statistics = RoutingStatistics(["only"], 2)
    statistics.update(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int64))
    assert statistics.compute()["load_cv"] == 0.0


def test_refusals():
    statistics = RoutingStatistics(["a", "b"], 2)
    with pytest.raises(DataError, match="no row was routed"):
        statistics.compute()
    with pytest.raises(DataError, match=r"expected \[B, 2\]"):
        statistics.update(torch.ones(3, 3), None)
    with pytest.raises(DataError, match=r"expected \(3, 2, 2\)"):
        statistics.update(torch.ones(3, 2), None, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2, 5))
