"""Two-tower models, pools and plain-numpy helpers for the tests of objectives on embeddings.

Shapes: B batch, D width of an embedding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from moekd.model import Model
from moekd.routers import Shapes
from moekd.signals import Signals
from moekd.step import Models, Step
from moekd.teachers import Teacher, TeacherPool

from ..builders import make_batch, randomise

Arrays = tuple[np.ndarray, np.ndarray]


class TwoTowers(nn.Module):
    """Embeds the fields `left` (as the image) and `right` (as the text), with a scale and a bias of its own."""

    def __init__(self, dim: int = 6, scale: float = 8.0, bias: float = -3.0) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(8, dim), nn.Linear(10, dim)
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Signals:
        rows = left_BD.shape[0]
        heads = {"logit_scale": self.log_scale.exp().expand(rows), "logit_bias": self.bias.expand(rows)}
        return Signals(embeddings={"image": self.image(left_BD), "text": self.text(right_BD)}, heads=heads)


def towers(seed: int, dim: int = 6, scale: float = 8.0) -> TwoTowers:
    """Return towers with weights of their own."""
    network = TwoTowers(dim, scale)
    randomise(network.image, seed)
    randomise(network.text, seed + 1)
    return network


def make_towers(seed: int = 1, dim: int = 6) -> Model:
    """Return a student with two towers."""
    return Model(towers(seed, dim), ["left", "right"])


def tower_pool(*dims: int) -> TeacherPool:
    """Return teachers `t0`, `t1`, ... of the given widths and of different scales."""
    return TeacherPool(
        {
            f"t{i}": Teacher(towers(20 + 2 * i, dim, scale=6.0 + 4 * i), ["left", "right"], name=f"t{i}")
            for i, dim in enumerate(dims)
        }
    )


def tower_step(pool: TeacherPool, student: Model | None = None, rows: int = 6, router=None, **options) -> Step:
    """Return a step of two-tower models."""
    return Step(make_batch(rows), Models(student or make_towers(), pool, router), **options)


def tower_shapes(*dims: int, student: int = 6) -> Shapes:
    """Return the widths of `make_towers()` and of the pool `tower_pool(*dims)`."""
    widths = {"student": student, **{f"t{i}": dim for i, dim in enumerate(dims)}}
    return Shapes(embeddings={name: {"image": dim, "text": dim} for name, dim in widths.items()})


def pair_of(signals: Signals) -> tuple[Tensor, Tensor]:
    """Return the (image, text) embeddings."""
    return signals.embeddings["image"], signals.embeddings["text"]


def random_pair(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return random (image, text) embeddings of any length."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=rng, dtype=dtype) * 3, torch.randn(rows, dim, generator=rng, dtype=dtype)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def softmax(values: list[float]) -> list[float]:
    """Softmax of a list, in plain Python."""
    powers = np.exp(np.array(values) - max(values))
    return list(powers / powers.sum())


def arrays(pair: tuple[Tensor, Tensor]) -> Arrays:
    """Return embeddings as float64 arrays."""
    return pair[0].detach().double().numpy(), pair[1].detach().double().numpy()
