"""Two processes on halves of a batch give the losses and gradients of one process on the whole batch."""

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

from moekd.distributed import (
    average_buffers,
    batch_mean,
    gather_with_gradients,
    masked_mean,
    rank,
    sum_over_processes,
    world_size,
)
from moekd.routers import coefficient_of_variation, kl_to_uniform

#: Rows of the first process, and which rows of the whole batch count: evenly, on one side only, nowhere.
CASES = {
    "even": (4, [1, 1, 1, 1, 1, 1, 1, 1]),
    "uneven": (5, [1, 0, 1, 0, 0, 1, 1]),
    "one_side": (3, [1, 1, 0, 0, 0, 0, 0]),
    "nowhere": (3, [0, 0, 0, 0, 0]),
    "one_row": (1, [0, 1, 1, 1, 0]),
    "one_counts": (2, [0, 0, 0, 1, 0]),
}


class Losses(nn.Module):
    """A linear map and all the ways in which losses are averaged over a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        with torch.no_grad():
            rng = torch.Generator().manual_seed(0)
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng))

    def forward(self, x_BD: Tensor, mask_B: Tensor) -> Tensor:
        """Return the masked mean, the plain mean, two losses of the batch mean and one of all pairs of rows, `[5]`."""
        scores = self.linear(x_BD)
        probs, row_B = scores.softmax(1), scores.square().sum(1)
        everyone, first = gather_with_gradients(scores)
        own = torch.arange(first, first + len(scores))
        pairs_B = nn.functional.cross_entropy(scores @ everyone.T, own, reduction="none")
        return torch.stack(
            [
                masked_mean(row_B, mask_B),
                masked_mean(row_B),
                kl_to_uniform(probs),
                coefficient_of_variation(probs),
                masked_mean(pairs_B),
            ]
        )


def data(case: str) -> tuple[Tensor, Tensor]:
    mask = torch.tensor(CASES[case][1], dtype=torch.bool)
    return torch.randn(len(mask), 3, generator=torch.Generator().manual_seed(1)), mask


def results(module: nn.Module, x_BD: Tensor, mask_B: Tensor) -> dict[str, np.ndarray]:
    """Return each loss and its gradients."""
    found = {}
    for index in range(5):
        module.zero_grad()
        losses = module(x_BD, mask_B)
        losses[index].backward()
        found[f"loss{index}"] = losses.detach().numpy()[index]
        for name, parameter in module.named_parameters():
            found[f"{name.removeprefix('module.')}{index}"] = parameter.grad.numpy().copy()
    return found


def work(me: int, store: Path, out: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=me, world_size=2)
    found: dict[str, np.ndarray] = {"place": np.array([rank(), world_size()])}
    for case, (first, _) in CASES.items():
        x, mask = data(case)
        part = slice(0, first) if me == 0 else slice(first, None)
        module = DistributedDataParallel(Losses())
        for key, value in results(module, x[part], mask[part]).items():
            found[f"{case}/{key}"] = value
        found[f"{case}/mean"] = batch_mean(x[part]).numpy()
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(float(me))
    norm.num_batches_tracked.fill_(me)
    average_buffers(norm)
    found["running_mean"], found["tracked"] = norm.running_mean.numpy(), norm.num_batches_tracked.numpy()
    found["sum"] = sum_over_processes(torch.tensor([1.0 + me])).numpy()
    np.savez(out, **found)
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """P1: losses and gradients to 1e-6 of one process."""
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
    assert [f["place"].tolist() for f in found] == [[0, 2], [1, 2]]
    for case in CASES:
        x, mask = data(case)
        expected = results(Losses(), x, mask)
        for key, value in expected.items():
            if key.startswith("loss"):
                together = np.mean([f[f"{case}/{key}"] for f in found], axis=0)
                np.testing.assert_allclose(together, value, rtol=1e-5, atol=1e-6, err_msg=f"{case} {key}")
            else:
                for f in found:
                    np.testing.assert_allclose(f[f"{case}/{key}"], value, rtol=1e-5, atol=1e-6, err_msg=f"{case} {key}")
        for f in found:
            np.testing.assert_allclose(f[f"{case}/mean"], x.mean(0).numpy(), rtol=1e-5, atol=1e-6)
    for f in found:
        assert f["running_mean"].tolist() == [0.5, 0.5]
        assert f["sum"].tolist() == [3.0]
    assert [int(f["tracked"]) for f in found] == [0, 1]


def test_one_process_needs_no_group() -> None:
    assert (rank(), world_size()) == (0, 1)
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert torch.equal(batch_mean(values), torch.tensor([2.0, 4.0]))
    gathered, first = gather_with_gradients(values)
    assert (gathered is values, first) == (True, 0)
    assert masked_mean(torch.tensor([1.0, 5.0]), torch.tensor([False, True])) == 5.0
    assert torch.equal(sum_over_processes(torch.tensor([2.0])), torch.tensor([2.0]))
    norm = nn.BatchNorm1d(2)
    average_buffers(norm)
    assert torch.equal(norm.running_var, torch.ones(2))


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
