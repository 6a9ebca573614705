"""Whole runs with cached teachers against the same runs with live ones: same losses, same weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.networks import NETWORKS
from moekd.registry import Injected
from moekd.signals import Signals

from ..engine.conftest import _tiny_kinds  # noqa: F401
from ..engine.tiny import Finished, simple, train
from ..objectives.towers import TwoTowers


class Towers(nn.Module):
    """Two towers and a classifier on the image's embedding; tap `towers.image`."""

    def __init__(self, num_classes: Injected[int], dim: int = 6) -> None:
        super().__init__()
        self.towers, self.classes = TwoTowers(dim), nn.Linear(dim, num_classes)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Signals:
        said = self.towers(left_BD, right_BD)
        return Signals(self.classes(said.embeddings["image"]), embeddings=said.embeddings, heads=said.heads)


@pytest.fixture(autouse=True, scope="module")
def _towers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS._members, "cached_towers", Towers)
        yield


TOWERS = {"kind": "cached_towers", "inputs": ["left", "right"]}
EMBEDDINGS = [
    "contrastive_kd",
    {"kind": "embedding_kd", "modalities": ["image", "text"], "normalise": "zscore"},
    "relational_kl",
]
ROUTED = [{"kind": "routed", "objective": {"kind": "contrastive_kd"}}, "routed_kd"]


def recipe(objectives: list[Any], place: str, **changes: Any) -> dict[str, Any]:
    """Return a recipe with two towers as teachers."""
    stage = {"trains": ["student", "router"], "objectives": ["cross_entropy", *objectives], "cache": place}
    return simple(
        stage,
        student=TOWERS,
        teachers={"narrow": TOWERS | {"dim": 4}, "wide": TOWERS | {"dim": 9}},
        router={"gate": {"kind": "instance"}, "selection": "top_k", "balance": ["kl_to_uniform"]},
        **changes,
    )


def farthest(one: Finished, other: Finished) -> float:
    """Return the largest difference between the weights of two runs and between their losses."""
    mine, theirs = one.weights(), other.weights()
    weights = max(float((mine[key].double() - theirs[key].double()).abs().max()) for key in mine)
    losses = [[list(record["losses"].values()) for record in run.records("train")] for run in (one, other)]
    return max(weights, float((torch.tensor(losses[0]) - torch.tensor(losses[1])).abs().max()))


@pytest.mark.parametrize("objectives", [EMBEDDINGS, ROUTED], ids=["embeddings", "routed"])
def test_cached_is_live(objectives: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = train(recipe(objectives, "off"), tmp_path / "live")
    assert live.records("stage_end")[0]["teacher_forwards"] > 0
    for place in ("auto", "memory", "disk"):
        with caplog.at_level(logging.INFO):
            cached = train(recipe(objectives, place, cache={"folder": str(tmp_path / "signals")}), tmp_path / place)
        assert cached.records("stage_end")[0]["teacher_forwards"] == 0
        assert farthest(live, cached) < 1e-6
    assert "of 2 teachers cached in memory and in" in caplog.text
    assert "of 2 teachers cached on disk in" in caplog.text
