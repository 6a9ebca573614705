"""Embeddings of earlier batches, so that a small batch has many negatives.

Shapes: N rows of all processes, K places of the queue, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ModelError

#: What a queue holds before anything was put in.
QueueStart = Literal["empty", "random"]


class FeatureQueue(nn.Module):
    """First in, first out: the last K rows of several embeddings, with the number that says what each row shows.

    MoCo (He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, arXiv 1911.05722).
    Everything is kept in buffers, which are part of checkpoints. Batches of any size fit; of one larger than the queue
    the last K rows stay.

    Args:
        size: K; 0 keeps nothing.
        widths: D by name of the embedding.
        start: `empty`: places without a row take no part; `random`: they hold random directions that are negatives of
            everything, as in the code of MoCo and of momentum distillation (arXiv 2107.07651).

    Raises:
        ConfigError: a negative size.
    """

    ids: Tensor
    known: Tensor
    pointer: Tensor

    def __init__(self, size: int, widths: Mapping[str, int], start: QueueStart = "empty") -> None:
        super().__init__()
        if size < 0:
            raise ConfigError(f"the size of a queue can't be negative, found {size}")
        self.size, self.names, self.start = size, list(widths), start
        for name, width in widths.items():
            rows = torch.randn(size, width) if start == "random" else torch.zeros(size, width)
            self.register_buffer(_key(name), F.normalize(rows, dim=1))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("known", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """Which places take part, bool `[K]`."""
        return torch.ones_like(self.known) if self.start == "random" else self.known

    def rows(self, name: str) -> Tensor:
        """Return an embedding of all places, `[K, D]`, at length 1 (0 where a place is empty); not a copy."""
        found: Tensor = getattr(self, _key(name))
        return found

    def same(self, ids_B: Tensor) -> Tensor:
        """Tell which places hold a row with the same number as each of these, `[B, K]`."""
        return (ids_B.reshape(-1, 1) == self.ids) & self.known

    @torch.no_grad()
    def push(self, ids_N: Tensor, values: Mapping[str, Tensor]) -> None:
        """Put rows in, in place of the oldest ones.

        Args:
            ids_N: number of each row.
            values: `[N, D]` by name of the embedding, at length 1; all that the queue has.

        Raises:
            ModelError: other embeddings than the queue's, or other numbers of rows.
        """
        if set(values) != set(self.names) or any(len(value) != len(ids_N) for value in values.values()):
            shapes = {name: tuple(value.shape) for name, value in values.items()}
            raise ModelError(f"the queue holds {self.names}; found {shapes} with {len(ids_N)} numbers")
        if not self.size or not len(ids_N):
            return
        ids_N = ids_N[-self.size :]
        places_N = (self.pointer + torch.arange(len(ids_N), device=ids_N.device)) % self.size
        for name, value in values.items():
            own = self.rows(name)
            own[places_N] = value[-self.size :].to(own.dtype)
        self.ids[places_N] = ids_N.reshape(-1)
        self.known[places_N] = True
        self.pointer.copy_((self.pointer + len(ids_N)) % self.size)


def _key(name: str) -> str:
    """Return the name of a buffer, which allows no dots."""
    return "rows_" + name.replace(".", ":")
