"""Recipes with two towers as teachers, and how far two runs are from each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moekd.registry import Injected
from moekd.signals import Signals

from ..engine.tiny import Finished, simple
from ..objectives.towers import TwoTowers


class Towers(nn.Module):
    """Two towers and a classifier on the image's embedding; tap `towers.image`."""

    def __init__(self, num_classes: Injected[int], dim: int = 6) -> None:
        super().__init__()
        self.towers, self.classes = TwoTowers(dim), nn.Linear(dim, num_classes)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Signals:
        said = self.towers(left_BD, right_BD)
        return Signals(self.classes(said.embeddings["image"]), embeddings=said.embeddings, heads=said.heads)


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
    """Return the largest difference between the weights of two runs and between their losses, relative above 1."""
    mine, theirs = one.weights(), other.weights()
    losses = [[list(record["losses"].values()) for record in run.records("train")] for run in (one, other)]
    pairs = [(mine[key].double(), theirs[key].double()) for key in mine]
    pairs.append((torch.tensor(losses[0]), torch.tensor(losses[1])))
    return max(float(((a - b).abs() / a.abs().clamp_min(1)).max()) for a, b in pairs)
