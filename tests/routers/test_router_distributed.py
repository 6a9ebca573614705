"""Two processes on parts of a batch: losses, gradients, biases and choices of one process on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from moekd.routers import Routing
from moekd.routers.alarm import CollapseAlarm
from moekd.routers.balances import (
    Load,
    MutualInformation,
    SwitchBalance,
    cv_squared,
    mean_entropy,
    routing_contrastive,
    switch_balance,
    z_loss,
)
from moekd.routers.selections import BiasBalanced, Drop, ExpertChoice, NoisyTopK, TopK
from moekd.schedules import Progress
from moekd.step import Models, Step
from moekd.teachers import TeacherPool

ROWS, TEACHERS, WIDTH = 7, 3, 4
CASES = {"uneven": 4, "one_row": 1}
NAMES = [
    "cv_squared",
    "switch",
    "z_loss",
    "entropy",
    "contrast",
    "load",
    "masked",
    "information",
    "running",
    "by_group",
]


class Ids(Step):
    """A training step that has sample ids and nothing else."""

    def __init__(self, ids_B: Tensor) -> None:
        super().__init__({"id": ids_B}, Models(None, TeacherPool({})), Progress())  # type: ignore[arg-type]


class Losses(nn.Module):
    """A gate of one layer with prototypes, and every balance loss on its scores."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(WIDTH, TEACHERS)
        self.prototypes = nn.Parameter(torch.randn(TEACHERS, WIDTH, generator=rng))
        self.noisy = NoisyTopK(WIDTH, TEACHERS, k=2, scale=3.0)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(TEACHERS, WIDTH, generator=rng))
            self.linear.bias.copy_(torch.randn(TEACHERS, generator=rng))

    def forward(self, x_BD: Tensor, ids_B: Tensor, mask_B: Tensor) -> Tensor:
        """Return the losses, `[10]`."""
        scores = self.linear(x_BD)
        probs, chosen = scores.softmax(1), scores.argmax(1, keepdim=True)
        noisy = self.noisy(scores, probs, Ids(ids_B))
        tasks = {"groups": ids_B % 2, "admitted": torch.ones(2, TEACHERS, dtype=torch.bool)}
        routing = Routing(
            noisy.weights, noisy.chosen, scores, probs, details=(noisy.details or {}) | tasks, mask=mask_B
        )
        running = MutualInformation(TEACHERS, running=True, tasks=2, warmup=1)
        running(routing)
        return torch.stack(
            [
                cv_squared(probs),
                switch_balance(probs, chosen),
                z_loss(scores),
                mean_entropy(probs),
                routing_contrastive(x_BD, self.prototypes, chosen, 0.5),
                Load()(routing),
                switch_balance(probs, chosen, mask_B=mask_B) + mean_entropy(probs, mask_B),
                MutualInformation(TEACHERS)(routing),
                running(routing),
                SwitchBalance(per_group=True)(routing),
            ]
        )


def data() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    mask = torch.tensor([False, True, True, False, True, False, True])
    return torch.randn(ROWS, WIDTH, generator=rng), torch.arange(ROWS) * 11 + 3, mask


def losses_and_gradients(module: nn.Module, *inputs: Tensor) -> dict[str, np.ndarray]:
    found = {}
    for index, name in enumerate(NAMES):
        module.zero_grad()
        for child in module.modules():
            if isinstance(child, NoisyTopK):
                child.draws.count.zero_()
        losses = module(*inputs)
        losses[index].backward()
        found[f"{name}/loss"] = losses.detach().numpy()[index]
        for key, parameter in module.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found[f"{name}/{key.removeprefix('module.')}"] = gradient.numpy().copy()
    return found


def routed(x_BD: Tensor, ids_B: Tensor) -> dict[str, np.ndarray]:
    """Return what selections do with the rows: weights by row, biases after three steps, the alarm's count."""
    logits = x_BD[:, :TEACHERS] * 3
    probs = logits.softmax(1)
    bias, alarm = BiasBalanced(TEACHERS, k=1, rate=0.25), CollapseAlarm(share=0.5)
    for _ in range(3):
        weights = bias(logits, probs, Ids(ids_B)).weights
        alarm.add(weights.sum(0))
        bias.after_step()
        alarm.after_step()
    choice, _ = ExpertChoice(1.0)(logits, probs)
    kept = ids_B % 3 > 0
    masked, _ = ExpertChoice(1.0)(logits, probs, None, kept)
    dropped, _ = Drop(normalise="all")(logits, probs, Ids(ids_B), kept)
    explored, _ = TopK(1, explore=0.5)(logits, probs, Ids(ids_B))
    noisy = NoisyTopK(WIDTH, TEACHERS, k=2)(logits, probs, Ids(ids_B))
    return {
        "rows/choice": choice.numpy(),
        "rows/masked": (masked * kept[:, None]).numpy(),
        "rows/dropped": dropped.numpy(),
        "rows/explored": explored.numpy(),
        "rows/noisy": noisy.weights.numpy(),
        "rows/biased": weights.numpy(),
        "bias": bias.bias.numpy(),
        "streak": alarm.streak.numpy(),
    }


def work(me: int, store: Path, out: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=me, world_size=2)
    found: dict[str, np.ndarray] = {}
    for case, first in CASES.items():
        part = slice(0, first) if me == 0 else slice(first, None)
        x, ids, mask = (value[part] for value in data())
        module = DistributedDataParallel(Losses(), broadcast_buffers=False, find_unused_parameters=True)
        found |= {f"{case}/{key}": value for key, value in losses_and_gradients(module, x, ids, mask).items()}
        found |= {f"{case}/{key}": value for key, value in routed(x, ids).items()}
    np.savez(out, **found)
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    outs = [tmp_path / f"{me}.npz" for me in range(2)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(me), str(tmp_path / "store"), str(outs[me])],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    found = [np.load(out, allow_pickle=False) for out in outs]
    x, ids, mask = data()
    expected = losses_and_gradients(Losses(), x, ids, mask) | routed(x, ids)
    for case in CASES:
        for key, value in expected.items():
            parts = [f[f"{case}/{key}"] for f in found]
            if key.startswith("rows/"):
                parts = [np.concatenate(parts)]
            for part in parts:
                np.testing.assert_allclose(part, value, rtol=1e-4, atol=1e-6, err_msg=f"{case} {key}")


def test_the_cases_are_not_trivial() -> None:
    x, ids, mask = data()
    found = losses_and_gradients(Losses(), x, ids, mask)
    assert all(np.abs(found[f"{name}/loss"]) > 1e-3 for name in NAMES)
    assert all(np.abs(found[f"{name}/linear.weight"]).max() > 1e-4 for name in NAMES if name != "contrast")
    assert np.abs(found["contrast/prototypes"]).max() > 1e-3
    assert routed(x, ids)["bias"].any()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
