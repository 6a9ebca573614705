"""Routers without parameters: two processes weigh the rows of a batch as one process does, and resume from a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from moekd.routers import Dense, Drop, Hash, Random, Router, Single, TopK, UniformGate
from moekd.routers.gates import ClassOracleGate, EntropyGate, GradientQPGate, LabelConfidenceGate, MismatchGate
from moekd.state_codec import flatten, unflatten

from ..builders import CLASSES, make_batch, make_step, strangers

ROOT = Path(__file__).resolve().parents[2]
ROWS, TEACHERS, STEPS = 7, 3, 3
KINDS = {
    "single": lambda: Router(UniformGate(TEACHERS), Single(1)),
    "random": lambda: Router(UniformGate(TEACHERS), Random(2, seed=5)),
    "hash": lambda: Router(UniformGate(TEACHERS), Hash(TEACHERS, 2, seed=5)),
    "drop_row": lambda: Router(MismatchGate(), Drop(0.5), combine="loss"),
    "drop_all": lambda: Router(MismatchGate(), Drop(0.5, normalise="all"), combine="loss"),
    "label_confidence": lambda: Router(LabelConfidenceGate(), Dense(), combine="loss"),
    "entropy": lambda: Router(EntropyGate(), TopK(2), combine="loss"),
    "gradient_qp": lambda: Router(GradientQPGate(), Dense(), combine="loss"),
    "class_oracle": lambda: Router(fitted(), Dense(), combine="loss"),
}


def fitted() -> ClassOracleGate:
    """Return a class oracle that measured the rows of this process, added over all."""
    gate = ClassOracleGate(CLASSES, TEACHERS)
    gate.fit(strangers(TEACHERS), [rows_of_this_process(make_batch(40, seed=3))])
    return gate


def rows_of_this_process(batch: dict) -> dict:
    """Return the first 4 rows in process 0, the others in process 1, and all without processes."""
    if not dist.is_initialized():
        return batch
    part = slice(0, 4) if dist.get_rank() == 0 else slice(4, None)
    return {key: value[part] for key, value in batch.items()}


def weigh(router: Router, steps: int = STEPS) -> Tensor:
    """Return the weights of the last of some training steps, `[B, T]`."""
    batch = rows_of_this_process(make_batch(ROWS, seed=1))
    return [make_step(strangers(TEACHERS), router, batch=batch).routing.applied_weights for _ in range(steps)][-1]


def work(me: int, store: Path, out: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=me, world_size=2)
    np.savez(out, **{kind: weigh(make()).detach().numpy() for kind, make in KINDS.items()})
    dist.destroy_process_group()


def test_two_processes_weigh_as_one(tmp_path: Path) -> None:
    outs = [tmp_path / f"{me}.npz" for me in range(2)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.routers.test_fixed_routers_distributed", str(me), tmp_path / "store", out],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me, out in enumerate(outs)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    found = [np.load(out, allow_pickle=False) for out in outs]
    for kind, make in KINDS.items():
        parts = np.concatenate([part[kind] for part in found])
        np.testing.assert_allclose(parts, weigh(make()).detach().numpy(), rtol=1e-3, atol=1e-4, err_msg=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_read_from_a_file_goes_on_as_the_saved_one(kind: str) -> None:
    saved, loaded = KINDS[kind](), KINDS[kind]()
    weigh(saved)
    loaded.load_state_dict(unflatten(*flatten(dict(saved.state_dict()))))
    for _ in range(3):
        assert torch.equal(weigh(loaded, 1), weigh(saved, 1))


def test_the_cases_are_not_trivial() -> None:
    for kind in ("random", "drop_row", "drop_all"):
        router = KINDS[kind]()
        assert len({tuple(weigh(router, 1).flatten().tolist()) for _ in range(4)}) > 1
    spread = weigh(KINDS["gradient_qp"]())[0]
    assert spread.max() - spread.min() > 0.01


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
