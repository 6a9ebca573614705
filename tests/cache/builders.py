"""A small split and a pool of teachers with logits, embeddings, heads and taps.

Shapes: N samples, D width of an embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moekd.cache import CacheSettings, Needs, SignalCache, SignalStore, TeacherPass
from moekd.data.arrays import ArrayField, ArraySplit
from moekd.data.dataset import Batch, FieldSpec
from moekd.signals import PoolSignals, Signals
from moekd.teachers import FeatureAttentionMask, Teacher, TeacherPool

N, C = 23, 5
CPU = torch.device("cpu")
NAMES = ["a", "b", "a/body"]
EVERYTHING = Needs(logits=True, embeddings=True, features=True)


class Towers(nn.Module):
    """Image and text embeddings, a scale, and a classifier on the image; taps `body` `[B, 8]` and `map` `[B, 2, 3]`."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body, self.map = nn.Linear(6, 8), nn.Unflatten(1, (2, 3))
        self.image, self.text, self.classes = nn.Linear(8, width), nn.Linear(6, width), nn.Linear(width, C)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x_BD: Tensor) -> Signals:
        image = self.image(self.body(self.map(x_BD).flatten(1)).tanh())
        heads = {"logit_scale": self.scale.exp().expand(len(x_BD))}
        return Signals(self.classes(image), embeddings={"image": image, "text": self.text(x_BD)}, heads=heads)


class CountingSplit(ArraySplit):
    """A split that counts the rows that are read."""

    reads = 0

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Read and count."""
        self.reads += len(rows)
        return super().read(rows)


class Holes(CountingSplit):
    """A split that leaves out its last two rows, as the policy `skip` does with bad samples."""

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Read all but the last two."""
        return super().read([row for row in rows if row < len(self) - 2])


def split_of(kind: type[CountingSplit] = CountingSplit, rows: int = N, seed: int = 0) -> CountingSplit:
    """Return a split with the field `x` `[6]`, which depends on the sample id alone."""
    ids = np.random.default_rng(seed).permutation(1000)[:rows].astype(np.int64)
    x = np.sin(ids[:, None] * np.arange(1, 7)).astype(np.float32)
    return kind("train", ids, None, {"x": ArrayField(x, FieldSpec((6,), "float32", "vector"))})


def pool_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> TeacherPool:
    """Return two teachers and a masked variant of the first."""
    torch.manual_seed(seed)
    pool = TeacherPool(
        {
            name: Teacher(Towers(width), inputs=["x"], taps=["body", "map"], name=name, dtype=dtype)
            for name, width in (("a", 4), ("b", 7))
        }
    )
    pool.specialise("a", "body", FeatureAttentionMask(dim=8, heads=2, hidden_factor=2).to(dtype))
    return pool.requires_grad_(False).eval()


def pass_of(pool: TeacherPool | None = None, split: CountingSplit | None = None, **options: Any) -> TeacherPass:
    """Return a pass of all variants over the split."""
    plain = TeacherPass(pool or pool_of(), NAMES, EVERYTHING, split or split_of(), "train", 5, CPU)
    return replace(plain, **options)


def through(
    folder: Path, teachers: TeacherPass, data: str = "data", mapped: bool = False, **settings: Any
) -> SignalCache:
    """Return the signals through a store."""
    return SignalStore(folder, data, CacheSettings(**settings)).cache(teachers, mapped)


def all_rows(teachers: TeacherPass) -> Batch:
    """Return the batch of the whole split."""
    return teachers.split.__getitems__(list(range(len(teachers.split))))


def live(teachers: TeacherPass, batch: Batch) -> PoolSignals:
    """Return what the teachers say now."""
    return teachers.pool(batch, list(teachers.variants), features=teachers.needs.features)


def distance(one: PoolSignals, other: PoolSignals, needs: Needs = EVERYTHING) -> float:
    """Return the largest difference between signals, infinite where their names or shapes differ."""
    largest = 0.0
    if one.names != other.names:
        return float("inf")
    for name in one:
        mine, theirs = needs.pick(one[name]), needs.pick(other[name])
        if mine.keys() != theirs.keys() or any(mine[key].shape != theirs[key].shape for key in mine):
            return float("inf")
        largest = max([largest, *(float((mine[k].double() - theirs[k].double()).abs().max()) for k in mine)])
    return largest


def tables(folder: Path) -> list[Path]:
    """Return the folders of a store."""
    return sorted(path for path in folder.iterdir() if path.is_dir())
