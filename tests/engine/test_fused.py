"""Fused optimizer steps: the same weights, the config's word first, other optimizers untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moekd.stages.fused import use_fused
from moekd.stages.loop_state import options_of

from .tiny import simple, train

OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD]


def trained(make: Callable[..., torch.optim.Optimizer], fused: bool, **options: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(7, 40), nn.ReLU(), nn.Linear(40, 3)).double(), torch.randn(9, 7).double()
    optimizer = make(network.parameters(), lr=1e-2, **options)
    optimizer = use_fused(optimizer) if fused else optimizer
    assert bool(optimizer.param_groups[0]["fused"]) == fused
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(30):
        optimizer.zero_grad()
        network(x).tanh().square().mean().backward()
        optimizer.step()
        scheduler.step()
    return list(network.parameters())


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}])
def test_weights_are_the_same(make: Callable[..., torch.optim.Optimizer], options: dict[str, Any]) -> None:
    options = {"momentum": 0.9} | options if make is torch.optim.SGD else options
    for one, other in zip(trained(make, True, **options), trained(make, False, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_what_the_config_says_comes_first() -> None:
    weight = nn.Parameter(torch.zeros(2))
    for options in ({"fused": False}, {"foreach": True}, {"foreach": False}, {"capturable": True}):
        assert not use_fused(torch.optim.Adam([weight], **options)).param_groups[0]["fused"]
    assert use_fused(torch.optim.Adam([weight], fused=True)).param_groups[0]["fused"]


def test_others_stay_as_they_are() -> None:
    weight, integers = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, device="meta"))
    assert "fused" not in use_fused(torch.optim.RMSprop([weight])).param_groups[0]
    assert not use_fused(torch.optim.Adam([integers])).param_groups[0]["fused"]
    groups = use_fused(torch.optim.SGD([{"params": [weight]}, {"params": [integers]}])).param_groups
    assert [bool(group["fused"]) for group in groups] == [True, False]


def test_how_a_step_is_computed_is_no_option_of_a_run() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=0.5)
    before = options_of(optimizer)
    assert options_of(use_fused(optimizer)) == before
    assert before[0]["lr"] == 0.5


def test_runs_take_fused_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    step = torch.optim.Adam.step

    def watched(optimizer: torch.optim.Adam, *args: Any) -> Any:
        taken.append(bool(optimizer.param_groups[0]["fused"]))
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    fused = train(simple({"optimizer": {"kind": "adam", "lr": 1e-3}}), tmp_path / "fused").weights()
    assert set(taken) == {True}
    taken.clear()
    plain = train(simple({"optimizer": {"kind": "adam", "lr": 1e-3, "fused": False}}), tmp_path / "plain").weights()
    assert set(taken) == {False}
    for key, weight in fused.items():
        torch.testing.assert_close(weight, plain[key], rtol=1e-5, atol=1e-6)
