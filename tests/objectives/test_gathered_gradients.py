"""Objectives whose rows meet the rows of other processes: two processes give the loss and gradients of one."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from moekd.objectives import (
    OBJECTIVES,
    EmbeddingContrastive,
    HardContrastive,
    HardPairKD,
    Matching,
    MomentumContrastive,
    Objective,
    PartialRanking,
    reduce,
)
from moekd.step import Models, Step
from moekd.teachers import TeacherPool

from ..builders import make_batch
from .pairs import matcher_pool, scorers_of
from .test_embedding_objectives import EVERY
from .towers import make_towers, tower_pool, tower_shapes

#: Objectives with the teachers they read; those of `test_embedding_objectives` are tried there.
CASES: dict[str, tuple[Callable[[], TeacherPool], Callable[[TeacherPool], Objective]]] = {
    "embedding_contrastive": (lambda: tower_pool(6, 6), lambda pool: EmbeddingContrastive(hide_same="label")),
    "embedding_contrastive_heads": (
        lambda: tower_pool(9, 4),
        lambda pool: EmbeddingContrastive(shapes=tower_shapes(9, 4)),
    ),
    "momentum_contrastive": (
        lambda: tower_pool(6),
        lambda pool: MomentumContrastive("t0", queue=4, shapes=tower_shapes(6)),
    ),
    "hard_contrastive": (lambda: tower_pool(6), lambda pool: HardContrastive(k=3, margin=None)),
    "matching": (
        lambda: learning(matcher_pool(1)),
        lambda pool: Matching("m0", k=2, miner="hardest", form="softmax"),
    ),
    "hard_pair_kd": (
        lambda: matcher_pool(1),
        lambda pool: HardPairKD(k=3, weighting="equal", scorers=scorers_of(pool)),
    ),
    "hard_pair_kd_dynamic": (lambda: matcher_pool(1), lambda pool: HardPairKD(k=3, scorers=scorers_of(pool))),
    "partial_ranking": (lambda: matcher_pool(1), lambda pool: PartialRanking(k=4, scorers=scorers_of(pool))),
}
#: What an objective calls where rows meet.
GATHERS = re.compile(r"\b(similarities|everywhere|gather_rows|gather_with_gradients)\(")


def learning(pool: TeacherPool) -> TeacherPool:
    """Let the teachers learn."""
    for name in pool.names:
        pool.teacher(name).thaw()
    return pool


class Trained(nn.Module):
    """Student, teachers and objective as one module, whose output is the reduced loss."""

    def __init__(self, name: str) -> None:
        super().__init__()
        make_teachers, make = CASES[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.pool = make_teachers()
            self.student, self.objective = make_towers(), make(self.pool)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        (loss,) = self.objective(Step(batch, Models(self.student, self.pool))).values()
        return reduce(loss)


def loss_and_gradients(module: nn.Module, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    loss = module(batch)
    loss.backward()
    named = {name.removeprefix("module."): parameter.grad for name, parameter in module.named_parameters()}
    found = {name: gradient.numpy().copy() for name, gradient in named.items() if gradient is not None}
    return found | {"loss": loss.detach().numpy()}


def work(me: int, store: str, out: str) -> None:
    """What each of two processes does, with five and with two rows of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=me, world_size=2)
    part = slice(0, 5) if me == 0 else slice(5, None)
    batch, found = {key: value[part] for key, value in make_batch(7).items()}, {}
    for name in CASES:
        module = DistributedDataParallel(Trained(name), broadcast_buffers=False, find_unused_parameters=True)
        found |= {f"{name}/{key}": value for key, value in loss_and_gradients(module, batch).items()}
    np.savez(out, **found)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return what each of two processes found."""
    folder, root = Path(tmp_path_factory.mktemp("halves")), Path(__file__).resolve().parents[2]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tests.objectives.test_gathered_gradients"]
    places = [[str(me), str(folder / "store"), str(folder / f"{me}.npz")] for me in range(2)]
    processes = [
        subprocess.Popen([*command, *place], env=environment, stderr=subprocess.PIPE, text=True, cwd=root)
        for place in places
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [np.load(folder / f"{me}.npz", allow_pickle=False) for me in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name: str, halves: list[Any]) -> None:
    expected = loss_and_gradients(Trained(name), make_batch(7))
    assert len(expected) > 2
    for key, value in expected.items():
        place = f"{name}/{key}"
        if key == "loss":
            np.testing.assert_allclose((halves[0][place] + halves[1][place]) / 2, value, rtol=1e-4, atol=1e-5)
        else:
            for half in halves:
                np.testing.assert_allclose(half[place], value, rtol=1e-3, atol=1e-4, err_msg=place)


def test_every_objective_that_gathers_is_here_or_there() -> None:
    tried = {type(make()) for make in EVERY.values()} | {type(make(pool())) for pool, make in CASES.values()}
    missing = []
    for kind in OBJECTIVES.names():
        cls = OBJECTIVES.get(kind)
        source = Path(inspect.getsourcefile(cls) or "").read_text()
        if cls.__module__.startswith("moekd.") and GATHERS.search(source) and cls not in tried:
            missing.append(kind)
    assert missing == []


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2], sys.argv[3])
