"""The evaluation loop against direct computation, and over processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from moekd.errors import DataError, NonFiniteError
from moekd.evaluation import CalibrationError, evaluate_model


def batches(logits, labels, sizes):
    return [{"logits": x, "label": y, "name": "kept"} for x, y in zip(logits.split(sizes), labels.split(sizes))]  # noqa: B905


def read(batch):
    return batch["logits"]


def test_uneven_batches_give_the_metrics_of_the_whole():
    logits, labels = torch.randn(23, 5), torch.randint(0, 5, (23,))
    metrics = evaluate_model(read, batches(logits, labels, [10, 10, 3]), 5, "cpu")
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["n"] == 23
    assert metrics["per_class_n"] == labels.bincount(minlength=5).tolist()
    assert "miou" not in metrics, "overlap of regions means something for dense labels only"


def test_dense_loss_skips_ignored_pixels():
    logits, labels = torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6))
    metrics = evaluate_model(read, batches(logits, labels, [2, 1]), 4, "cpu", ignore_index=0)
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, labels, ignore_index=0).item(), rel=1e-6)
    assert metrics["n"] == int((labels != 0).sum())
    assert 0 < metrics["miou"] < 1


def test_calibration_error_hand_case():
    # two samples at confidence 0.75 (one right), one at 0.9 (right), a fourth not counted
    confidence = torch.tensor([0.75, 0.75, 0.9, 0.6])
    logits = torch.stack([confidence, 1 - confidence], 1).log()
    error = CalibrationError()
    error.update(logits, torch.tensor([0, 1, 0, 1]), torch.tensor([True, True, True, False]))
    assert error.compute() == pytest.approx((2 * abs(0.5 - 0.75) + abs(1 - 0.9)) / 3, abs=1e-6)


def test_calibration_error_matches_a_naive_loop():
    logits, labels = 3 * torch.randn(200, 4), torch.randint(0, 4, (200,))
    error = CalibrationError(bins=15)
    for x, y in zip(logits.split(64), labels.split(64), strict=True):
        error.update(x, y, torch.ones_like(y, dtype=torch.bool))
    confidence, predicted = logits.softmax(1).max(1)
    naive = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            hits = (predicted == labels)[inside].float().mean()
            naive += inside.float().mean().item() * abs(hits - confidence[inside].mean()).item()
    assert error.compute() == pytest.approx(naive, abs=1e-6)


def test_no_gradients_are_recorded():
    weight = torch.ones(3, requires_grad=True)
    seen = []

    def forward(batch):
        seen.append((batch["logits"] * weight).requires_grad)
        return batch["logits"] * weight

    evaluate_model(forward, batches(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), [4]), 3, "cpu")
    assert seen == [False]


def test_refusals():
    with pytest.raises(DataError, match="no sample"):
        evaluate_model(read, [], 3, "cpu")
    with pytest.raises(DataError, match="field 'label'; fields: logits"):
        evaluate_model(read, [{"logits": torch.randn(2, 3)}], 3, "cpu")
    with pytest.raises(DataError, match="outside"):
        evaluate_model(read, batches(torch.randn(2, 3), torch.tensor([-1, 0]), [2]), 3, "cpu")
    with pytest.raises(NonFiniteError):
        evaluate_model(read, batches(torch.full((2, 3), torch.nan), torch.tensor([1, 0]), [2]), 3, "cpu")


SHARE = """
import json, sys, torch, torch.distributed as dist
from moekd.evaluation import evaluate_model
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
data = torch.load(f"{folder}/data.pt", weights_only=True)
share = slice(0, 9) if rank == 0 else slice(9, None)
parts = zip(data["logits"][share].split(4), data["labels"][share].split(4))
metrics = evaluate_model(lambda b: b["logits"], [{"logits": x, "label": y} for x, y in parts], 3, "cpu")
open(f"{folder}/{rank}.json", "w").write(json.dumps(metrics))
dist.destroy_process_group()
"""


def test_two_processes_give_the_metrics_of_the_whole(tmp_path):
    logits, labels = torch.randn(11, 3), torch.randint(0, 3, (11,))
    torch.save({"logits": logits, "labels": labels}, tmp_path / "data.pt")
    command = [sys.executable, "-c", SHARE]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    expected = evaluate_model(read, batches(logits, labels, [11]), 3, "cpu")
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-9, nan_ok=True), key
