"""What a bilevel stage teaches the gate of TGeo-KD on real digits: to distrust wrong labels, and a wrong teacher."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moekd.model import Model
from moekd.objectives import FusedKDCE
from moekd.routers import Dense, Router
from moekd.routers.gates import FusionRatioGate
from moekd.schedules import Progress
from moekd.stages import TrainingStep, WeightedObjective
from moekd.stages.outer_step import router_gradients
from moekd.step import Models, Step
from moekd.teachers import Teacher, TeacherPool

pytestmark = pytest.mark.data
ROWS, STEPS, LR = 500, 300, 0.1


class Outcome(NamedTuple):
    """Mean weight of the teacher on the rows in question and on the others, and accuracy on fresh rows."""

    flagged: float
    others: float
    accuracy: float


def digits(root: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Return the Karhunen-Loeve coefficients of 2,000 digits and their labels, shuffled."""
    with np.load(root / "mfeat_6views" / "mfeat.npz", allow_pickle=False) as packed:
        x = np.concatenate([packed["v5_train"], packed["v5_test"]]).astype(np.float32)
        y = np.concatenate([packed["y_train"], packed["y_test"]]).astype(np.int64) % 10
    order = np.random.default_rng(seed).permutation(len(y))
    return torch.from_numpy(((x - x.mean(0)) / x.std(0))[order]), torch.from_numpy(y[order])


def network(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def teacher_of(x: Tensor, y: Tensor) -> TeacherPool:
    net = network(64)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return TeacherPool({"teacher": Teacher(net, ["x"], name="teacher")})


def batch_of(x: Tensor, y: Tensor, rows: np.ndarray) -> dict[str, Tensor]:
    return {"x": x[rows], "label": y[rows], "id": torch.from_numpy(rows)}


def distilled(root: Path, wrong: str, outer_lr: float, seed: int = 0) -> Outcome:
    """Distil with 500 rows whose labels are wrong by 20 %, or from a teacher that mixes up three digits."""
    torch.manual_seed(seed)
    x, y = digits(root, seed)
    rng = np.random.default_rng(seed)
    taught = torch.where((y < 3) & (wrong == "teacher"), (y + 1) % 3, y)
    pool, given = teacher_of(x[600:1200], taught[600:1200]), y[:ROWS].clone()
    corrupted = rng.permutation(ROWS)[: ROWS // 5] if wrong == "labels" else np.zeros(0, dtype=np.int64)
    given[corrupted] = (given[corrupted] + torch.from_numpy(rng.integers(1, 10, len(corrupted)))) % 10
    student, gate = Model(network(32), ["x"]), FusionRatioGate(10, 1)
    everything = batch_of(x[:ROWS], given, np.arange(ROWS))
    gate.fit(pool, [everything])
    models = Models(student, pool, Router(gate, Dense(), combine="loss", signal="bilevel"))
    module = TrainingStep(models, [WeightedObjective(FusedKDCE(1.5))], variants=["teacher"])
    inner = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9)
    outer = torch.optim.Adam(gate.parameters(), lr=outer_lr)
    held_out = batch_of(x, y, np.arange(ROWS, 600))
    for _ in range(STEPS):
        batch = batch_of(x, given, rng.integers(0, ROWS, 64))
        if outer_lr:
            found = router_gradients(module, batch, held_out, Progress(), LR, "unroll")
            for parameter, gradient in zip(gate.parameters(), found.gradients, strict=True):
                parameter.grad = gradient
            outer.step()
        inner.zero_grad()
        module(batch, Progress())["loss"].backward()
        inner.step()
    with torch.no_grad():
        share = Step(everything, models, training=False, variants=["teacher"]).routing.teacher_share
        mistaken = pool(everything)["teacher"].logits.argmax(1) != y[:ROWS]
        flagged = mistaken if wrong == "teacher" else torch.isin(torch.arange(ROWS), torch.from_numpy(corrupted))
        right = student({"x": x[1200:]}).logits.argmax(1) == y[1200:]
    return Outcome(*(float(value.float().mean()) for value in (share[flagged], share[~flagged], right)))


def test_rows_with_wrong_labels_learn_more_from_the_teacher(data_root: Path) -> None:
    learned = distilled(data_root, "labels", 1e-3)
    assert learned.flagged > learned.others + 0.05


def test_rows_with_a_wrong_teacher_learn_more_from_the_label(data_root: Path) -> None:
    learned, random = distilled(data_root, "teacher", 3e-3), distilled(data_root, "teacher", 0.0)
    assert learned.flagged < learned.others - 0.05
    assert learned.accuracy > random.accuracy + 0.1
