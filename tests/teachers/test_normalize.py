"""Normalised targets: their statistics, what stays as it was, freezing, folding, several processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from moekd.errors import ConfigError, ModelError
from moekd.teachers.normalize import TargetNorm

KINDS = ("zscore", "ema", "phi_s")
SPREAD = torch.tensor([1.0, 20.0, 0.3, 5.0, 2.0, 0.05])


def targets(rows: int = 64, seed: int = 0, dim: int = 6) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, dim, generator=rng) @ torch.randn(dim, dim, generator=torch.Generator().manual_seed(99))
    return mixed * SPREAD[:dim] + 3.0


def trained(kind: str, batches: int = 4, **options: int) -> TargetNorm:
    norm = TargetNorm(kind, 6, **options)  # type: ignore[arg-type]
    for seed in range(batches):
        norm(targets(seed=seed), update=True)
    return norm


def test_none_changes_nothing_and_keeps_no_statistics() -> None:
    norm, y = TargetNorm("none", 6), targets()
    assert norm(y, update=True) is y
    assert norm.inverse(y) is y
    assert norm.frozen
    assert norm.updates == 0


def test_zscore_is_the_mean_and_deviation_of_all_rows_seen() -> None:
    norm = trained("zscore", 3)
    seen = torch.cat([targets(seed=seed) for seed in range(3)]).double().numpy()
    np.testing.assert_allclose(norm.mean.numpy(), seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.scale.numpy(), seen.std(0), rtol=1e-5)
    y = targets(seed=7)
    np.testing.assert_allclose(norm(y).numpy(), (y.numpy() - seen.mean(0)) / seen.std(0), rtol=1e-4, atol=1e-4)


def test_phi_s_gives_unit_variance_and_keeps_ratios_of_distances() -> None:
    norm, y = trained("phi_s", 1), targets()
    z = norm(y)
    torch.testing.assert_close(z.var(dim=0, correction=0), torch.ones(6), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(6), atol=1e-4, rtol=0)
    ratio = torch.pdist(z) / torch.pdist(y)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)
    covariance = torch.cov(y.T.double(), correction=0)
    assert ratio[0].item() == pytest.approx(1 / math.sqrt(covariance.diagonal().mean()), rel=1e-4)


def test_phi_s_takes_a_teacher_of_low_rank_and_a_constant_one() -> None:
    norm = TargetNorm("phi_s", 6)
    y = torch.randn(50, 2) @ torch.randn(2, 6)
    z = norm(y, update=True)
    torch.testing.assert_close(z.var(dim=0, correction=0), torch.ones(6), rtol=1e-3, atol=1e-3)
    constant = TargetNorm("phi_s", 6)(torch.full((9, 6), 4.0), update=True)
    torch.testing.assert_close(constant, torch.zeros(9, 6), atol=1e-3, rtol=0)


def test_ema_follows_its_formula() -> None:
    norm, steps = TargetNorm("ema", 6, freeze_after=5), 5
    mean, variance = np.zeros(6), np.ones(6)
    for step in range(steps):
        y = targets(seed=step).double().numpy()
        momentum = 0.001 + 0.999 * (1 + math.cos(math.pi * step / (steps - 1))) / 2
        mean += momentum * (y.mean(0) - mean)
        variance += momentum * (y.var(0) - variance)
        norm(targets(seed=step), update=True)
    np.testing.assert_allclose(norm.mean.numpy(), mean, rtol=1e-4)
    np.testing.assert_allclose(norm.scale.numpy() ** 2, variance, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_meets_the_statistics_of_the_batches_before(kind: str) -> None:
    norm = TargetNorm(kind, 6, refresh_every=1)  # type: ignore[arg-type]
    first = norm(targets(seed=0), update=True)
    torch.testing.assert_close(first.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    second = targets(seed=1)
    before = norm(second)
    assert torch.equal(norm(second, update=True), before)
    assert not torch.allclose(norm(second), before)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_freeze(kind: str) -> None:
    norm = trained(kind, 3, freeze_after=3, refresh_every=2)
    assert norm.frozen
    before = norm(targets())
    norm(targets(seed=50) * 9, update=True)
    assert norm.updates == 3
    assert torch.equal(norm(targets()), before)


def test_phi_s_rotates_when_it_freezes() -> None:
    frozen, whole = trained("phi_s", 3, freeze_after=3, refresh_every=100), trained("phi_s", 3, refresh_every=1)
    assert torch.equal(frozen.rotation, whole.rotation)
    assert not torch.equal(frozen.rotation, trained("phi_s", 3, refresh_every=100).rotation)


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_and_folding_give_the_targets_back(kind: str) -> None:
    norm, y = trained(kind), targets(seed=9)
    torch.testing.assert_close(norm.inverse(norm(y)), y, rtol=1e-4, atol=1e-4)
    for bias in (True, False):
        head, x = nn.Linear(4, 6, bias=bias), torch.randn(5, 4)
        torch.testing.assert_close(norm.fold(head)(x), norm.inverse(head(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_carries_everything(kind: str) -> None:
    norm = trained(kind, 2)
    copy = TargetNorm(kind, 6)  # type: ignore[arg-type]
    copy.load_state_dict({key: value.clone() for key, value in norm.state_dict().items()})
    for one in (norm, copy):
        one(targets(seed=3), update=True)
    assert copy.updates == 3
    assert torch.equal(copy(targets()), norm(targets()))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_share_the_statistics_of_their_channels(kind: str) -> None:
    tokens = targets(60).reshape(12, 5, 6)
    one, flat = TargetNorm(kind, 6), TargetNorm(kind, 6)  # type: ignore[arg-type]
    torch.testing.assert_close(one(tokens, update=True), flat(tokens.reshape(60, 6), update=True).reshape(12, 5, 6))


def test_half_precision_targets_are_normalised_in_float32() -> None:
    norm = trained("zscore")
    assert norm(targets().bfloat16()).dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"made for 6 channels, found targets \(3, 5\)"):
        TargetNorm("zscore", 6)(torch.ones(3, 5))
    with pytest.raises(ModelError, match="6 channels into a layer of 5"):
        TargetNorm("zscore", 6).fold(nn.Linear(2, 5))
    for options in ({"dim": 0}, {"dim": 3, "freeze_after": -1}, {"dim": 3, "refresh_every": 0}):
        with pytest.raises(ConfigError, match="target normalisation needs"):
            TargetNorm("zscore", **options)


def work(me: int, store: Path, out: Path) -> None:
    """What each of two processes does: its share of the rows, once one of them empty."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=me, world_size=2)
    found = {}
    for kind in KINDS:
        norm = TargetNorm(kind, 6, refresh_every=1)  # type: ignore[arg-type]
        for seed, cut in enumerate((40, 10, 64)):
            y = targets(seed=seed)
            norm(y[:cut] if me == 0 else y[cut:], update=True)
        found[kind] = norm(targets(seed=9)).numpy()
    np.savez(out, **found)
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    outs = [tmp_path / f"{me}.npz" for me in range(2)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    arguments = [[sys.executable, __file__, str(me), str(tmp_path / "store"), str(outs[me])] for me in range(2)]
    processes = [subprocess.Popen(a, env=environment, stderr=subprocess.PIPE, text=True) for a in arguments]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    for kind in KINDS:
        norm = trained(kind, 3, refresh_every=1)
        for out in outs:
            np.testing.assert_allclose(np.load(out)[kind], norm(targets(seed=9)).numpy(), rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
