"""Tiny cross-encoders for the tests of objectives on pairs.

Shapes: B batch, P pairs, D width of an embedding.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from moekd.model import Model
from moekd.objectives import PairScorer
from moekd.signals import Signals
from moekd.step import Step
from moekd.teachers import Teacher, TeacherPool

from ..builders import randomise
from .towers import tower_step


class MatcherTowers(nn.Module):
    """Embeds the fields `left` and `right`, and scores pairs by a bilinear form."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.image, self.text, self.pair = nn.Linear(8, dim), nn.Linear(10, dim), nn.Bilinear(dim, dim, 1)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Signals:
        image, text = self.image(left_BD), self.text(right_BD)
        return Signals(embeddings={"image": image, "text": text}, heads={"match": self.match(image, text)})

    def match(self, image_PD: Tensor, text_PD: Tensor) -> Tensor:
        scores: Tensor = self.pair(image_PD, text_PD)[:, 0]
        return scores


def matcher_pool(count: int = 1, twice: bool = False) -> TeacherPool:
    """Return cross-encoders `m0`, `m1`, ...; with `twice` a copy of `m0` besides."""
    networks = {f"m{i}": randomise(MatcherTowers(), 40 + i) for i in range(count)}
    if twice:
        networks["copy"] = copy.deepcopy(networks["m0"])
    return TeacherPool({name: Teacher(network, ["left", "right"], name=name) for name, network in networks.items()})


def scorers_of(pool: TeacherPool) -> dict[str, PairScorer]:
    """Return the match functions of a pool."""
    return {name: pool.teacher(name).network.match for name in pool.names}


def matcher_step(pool: TeacherPool, student: Model | None = None, rows: int = 6, router=None, **options) -> Step:
    """Return a step of a two-tower student and cross-encoders."""
    return tower_step(pool, student, rows, router, **options)


def all_scores(network: nn.Module, image_BD: Tensor, text_BD: Tensor) -> Tensor:
    """Return the score of every image with every text, `[B, B]`, one pair at a time."""
    return torch.stack([torch.cat([network.match(i[None], t[None]) for t in text_BD]) for i in image_BD])
