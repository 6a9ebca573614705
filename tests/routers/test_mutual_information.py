"""Mutual information of tasks and teachers: known values, a running estimate, what it teaches a gate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from moekd.errors import ConfigError, ModelError
from moekd.routers import (
    Dense,
    Router,
    Routing,
    UniformGate,
)
from moekd.routers.balances import MutualInformation, joint_distribution, mutual_information
from moekd.routers.gates import TaskGate

from ..builders import CLASSES, make_batch, make_step, randomise, strangers


def batch_of(groups: Tensor, field: str) -> dict[str, Any]:
    return make_batch(len(groups)) | {field: groups}


def routing_of(probs: Tensor, chosen: Tensor, groups: Tensor, admitted: Tensor, **options: Any) -> Routing:
    details = {"groups": groups, "admitted": admitted}
    return Routing(probs, chosen, probs.log(), probs, details=details, **options)


def test_mutual_information_known_values() -> None:
    assert mutual_information(torch.full((2, 2), 0.25)).item() == pytest.approx(0.0, abs=2e-4)
    assert mutual_information(torch.eye(2) / 2).item() == pytest.approx(math.log(2), abs=1e-4)
    three = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.25, 0.25]])
    assert mutual_information(three).item() == pytest.approx(math.log(2), abs=2e-4)


def test_joint_distribution_by_a_loop() -> None:
    probs, tasks = torch.randn(7, 3).softmax(1), torch.tensor([0, 1, -1, 1, 0, 2, 2])
    mask = torch.tensor([True, True, True, False, True, True, True])
    expected = torch.zeros(4, 3)
    for row in range(7):
        if mask[row] and tasks[row] >= 0:
            expected[tasks[row]] += probs[row] / 5
    torch.testing.assert_close(joint_distribution(probs, tasks, 4, mask), expected)


def test_mutual_information_is_highest_where_every_task_has_its_teacher() -> None:
    groups = torch.tensor([0, 0, 1, 1])
    own = torch.eye(2)[groups].clamp(0.001, 0.999)
    balance = MutualInformation(2)
    admitted = torch.ones(2, 2, dtype=torch.bool)
    losses = [
        balance(routing_of(probs, groups[:, None], groups, admitted)).item()
        for probs in (own, torch.full((4, 2), 0.5), torch.tensor([[0.999, 0.001]]).expand(4, -1))
    ]
    assert losses[0] < -0.68
    assert losses[1:] == pytest.approx([0.0, 0.0], abs=2e-4)


def test_training_by_mutual_information_gives_each_task_its_teacher() -> None:
    torch.manual_seed(0)
    gate = randomise(TaskGate(CLASSES, 4, tasks=2), 5, scale=0.05)
    balance = MutualInformation(4, weight=1.0)
    batch = make_batch(64) | {"task": torch.arange(64) % 2}
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        step = make_step(strangers(4), Router(gate, Dense(), [balance], combine="loss", signal="aux_only"), batch=batch)
        loss = step.routing.losses["balance"]
        loss.backward()
        optimizer.step()
    assert loss.item() < -0.5


def surrogate_case() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    scores = torch.randn(12, 3, requires_grad=True)
    return scores, torch.arange(12) % 2, torch.ones(2, 3, dtype=torch.bool)


def test_the_running_surrogate_has_the_gradient_of_the_mutual_information() -> None:
    scores, tasks, admitted = surrogate_case()
    exact = MutualInformation(3)(routing_of(scores.softmax(1), tasks[:, None], tasks, admitted))
    (expected,) = torch.autograd.grad(exact, scores)
    balance = MutualInformation(3, running=True, tasks=2, warmup=1)
    balance(routing_of(scores.softmax(1), tasks[:, None], tasks, admitted))
    torch.testing.assert_close(balance.joint, joint_distribution(scores.softmax(1).detach(), tasks, 2))
    loss = balance(routing_of(scores.softmax(1), tasks[:, None], tasks, admitted))
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-5)


def test_warm_up_batches_of_each_task_have_no_loss_and_average_equally() -> None:
    balance = MutualInformation(2, running=True, tasks=2, warmup=2, momentum=0.9)
    admitted = torch.ones(2, 2, dtype=torch.bool)

    def feed(task: int, first: float) -> float:
        probs = torch.tensor([[first, 1 - first]])
        tasks = torch.tensor([task])
        return balance(routing_of(probs, tasks[:, None], tasks, admitted)).item()

    assert [feed(0, 0.8), feed(0, 0.6), feed(1, 0.1)] == [0, 0, 0]
    torch.testing.assert_close(balance.joint, torch.tensor([[0.35, 0.15], [0.05, 0.45]]))
    assert feed(0, 0.9) != 0
    torch.testing.assert_close(balance.joint[0], torch.tensor([0.9 * 0.35 + 0.1 * 0.45, 0.9 * 0.15 + 0.1 * 0.05]))
    assert feed(1, 0.1) == 0
    assert balance.batches.tolist() == [3, 2]
    again = MutualInformation(2, running=True, tasks=2, warmup=2, momentum=0.9)
    again.load_state_dict(balance.state_dict())
    assert feed(1, 0.3) == pytest.approx(_fed(again, admitted))


def _fed(balance: MutualInformation, admitted: Tensor) -> float:
    tasks = torch.tensor([1])
    return balance(routing_of(torch.tensor([[0.3, 0.7]]), tasks[:, None], tasks, admitted)).item()


def test_refused() -> None:
    with pytest.raises(ConfigError, match="give the number of tasks together with 'running: true'"):
        MutualInformation(3, running=True)
    with pytest.raises(ConfigError, match="and only then"):
        MutualInformation(3, tasks=2)
    router = Router(UniformGate(3), Dense(), [MutualInformation(3)], combine="loss", signal="aux_only")
    with pytest.raises(ModelError, match="needs the gate 'task' or 'modality'"):
        _ = make_step(strangers(3), router).routing
    gate = TaskGate(CLASSES, 3, 2)
    router = Router(gate, Dense(), [MutualInformation(3, running=True, tasks=5)], combine="loss")
    with pytest.raises(ModelError, match="has 5 tasks, the gate has 2"):
        _ = make_step(strangers(3), router, batch=batch_of(torch.arange(6) % 2, "task")).routing
