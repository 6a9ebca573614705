"""Metrics against hand-computed values and a naive loop."""

from __future__ import annotations

import math

import pytest
import torch

from moekd.errors import DataError, NonFiniteError
from moekd.evaluation import ConfusionMatrix

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
PREDICTED = torch.tensor([0, 0, 0, 1, 1, 0, 2, 2, 1, 1])
# rows = labels: [[3, 1, 0], [1, 1, 0], [0, 2, 2]]


def counted(predicted=PREDICTED, labels=LABELS, classes=3, **options) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes, **options)
    matrix.update(predicted, labels)
    return matrix


def test_hand_computed_values():
    metrics = counted().compute()
    assert metrics["accuracy"] == pytest.approx(0.6)
    assert metrics["per_class_accuracy"] == pytest.approx([3 / 4, 1 / 2, 2 / 4])
    assert metrics["balanced_accuracy"] == pytest.approx(1.75 / 3)
    assert metrics["per_class_precision"] == pytest.approx([3 / 4, 1 / 4, 1.0])
    assert metrics["weighted_f1"] == pytest.approx((4 * 0.75 + 2 * (1 / 3) + 4 * (2 / 3)) / 10)
    chance = (4 * 4 + 2 * 4 + 4 * 2) / 100
    assert metrics["kappa"] == pytest.approx((0.6 - chance) / (1 - chance))
    assert metrics["miou"] == pytest.approx((3 / 5 + 1 / 5 + 2 / 4) / 3)
    assert metrics["n"] == 10


def test_absent_class_is_nan_and_left_out_of_the_means():
    metrics = counted(classes=4).compute()
    assert math.isnan(metrics["per_class_accuracy"][3])
    assert math.isnan(metrics["per_class_precision"][3])
    assert metrics["balanced_accuracy"] == pytest.approx(1.75 / 3)
    assert metrics["miou"] == pytest.approx(counted().compute()["miou"])


def test_predicted_but_absent_class_has_iou_zero():
    metrics = counted(torch.tensor([0, 1]), torch.tensor([0, 0]), classes=2).compute()
    assert metrics["miou"] == pytest.approx((0.5 + 0.0) / 2)
    assert metrics["balanced_accuracy"] == pytest.approx(0.5)


def test_one_class_only_has_undefined_kappa():
    assert math.isnan(counted(torch.tensor([0, 0]), torch.tensor([0, 0]), classes=2).compute()["kappa"])


def test_logits_equal_predictions_and_dense_equals_flat():
    logits = torch.randn(4, 5, 3, 2)
    labels = torch.randint(0, 5, (4, 3, 2), dtype=torch.uint8)
    dense = counted(logits, labels, 5)
    flat = counted(logits.argmax(1).flatten(), labels.flatten(), 5)
    assert torch.equal(dense.matrix, flat.matrix)
    naive = torch.zeros(5, 5, dtype=torch.int64)
    for true, predicted in zip(labels.flatten().tolist(), logits.argmax(1).flatten().tolist(), strict=True):
        naive[true, predicted] += 1
    assert torch.equal(dense.matrix, naive)


# void = 0; the counted pixels: labels 1 1 1 2 2, predictions 1 0 2 2 0
VOID_LABELS = torch.tensor([[[0, 1, 1], [1, 2, 2]]])
VOID_PREDICTED = torch.tensor([[[1, 1, 0], [2, 2, 0]]])


def test_pixels_predicted_as_void_are_errors():
    metrics = counted(VOID_PREDICTED, VOID_LABELS, ignore_index=0).compute()
    assert metrics["n"] == 5
    assert metrics["accuracy"] == pytest.approx(2 / 5)
    assert math.isnan(metrics["per_class_accuracy"][0])
    assert metrics["per_class_accuracy"][1:] == pytest.approx([1 / 3, 1 / 2])
    assert metrics["balanced_accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    # void has no union of its own: its false positives are already errors of the true classes
    assert metrics["miou"] == pytest.approx((1 / 3 + 1 / 3) / 2)


def test_parity_drops_pixels_predicted_as_void_but_not_from_f1():
    metrics = counted(VOID_PREDICTED, VOID_LABELS, ignore_index=0, parity=True).compute()
    assert metrics["n"] == 3
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["per_class_accuracy"][1:] == pytest.approx([1 / 2, 1.0])
    assert metrics["miou"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert metrics["weighted_f1"] == pytest.approx((3 * 2 / 4 + 2 * 2 / 4) / 5)


@pytest.mark.parametrize("void", [-1, 255])
def test_ignored_label_outside_of_the_classes(void):
    metrics = counted(torch.tensor([0, 1, 1]), torch.tensor([0, 1, void]), 2, ignore_index=void).compute()
    assert (metrics["n"], metrics["accuracy"]) == (2, 1.0)


def test_merge_state_and_batches_give_the_same_counts():
    whole = counted()
    first, second = counted(PREDICTED[:3], LABELS[:3]), counted(PREDICTED[3:], LABELS[3:])
    restored = ConfusionMatrix(3)
    restored.load_state_dict(first.state_dict())
    assert torch.equal(restored.merge(second).matrix, whole.matrix)
    assert torch.equal(first.matrix.sum(), torch.tensor(3)), "the state is a copy"
    with pytest.raises(DataError, match="differ"):
        whole.merge(ConfusionMatrix(4))
    with pytest.raises(DataError, match="another confusion matrix"):
        ConfusionMatrix(4).load_state_dict(whole.state_dict())


def test_refuses_what_it_cant_count():
    with pytest.raises(DataError, match=r"3 labels or predictions lie outside of \[0, 3\)"):
        counted(torch.tensor([0, 3, 1, 2]), torch.tensor([-1, 0, 3, 2])).compute()
    with pytest.raises(DataError, match="no sample was counted"):
        ConfusionMatrix(3).compute()
    with pytest.raises(DataError, match=r"logits \[B, 3, ...\]"):
        counted(torch.randn(2, 4), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="do not fit"):
        counted(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]))
    with pytest.raises(NonFiniteError, match="1 samples have NaN"):
        counted(torch.tensor([[0.0, float("nan"), 1.0], [1.0, 0.0, 0.0]]), torch.tensor([0, 0])).compute()


def test_empty_batch_adds_nothing():
    matrix = counted()
    matrix.update(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert matrix.compute()["n"] == 10


def test_update_works_on_tensors_without_values():
    """The meta device has no values to read: any host sync would fail."""
    matrix = ConfusionMatrix(3, ignore_index=0, device="meta")
    matrix.update(torch.randn(2, 3, 4, 4, device="meta"), torch.zeros(2, 4, 4, dtype=torch.int64, device="meta"))
    assert matrix.counts.is_meta
