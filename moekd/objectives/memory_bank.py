"""Memory banks of embeddings of a whole training set, and negatives drawn from them.

Shapes: B batch, N instances of the training set, K negatives, D features.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import gather_rows
from ..errors import ConfigError


class NegativeSampler(nn.Module):
    """Finds the bank row of a sample and draws rows of other classes.

    Rows without a class (-1) have every other row as a negative. Drawn with replacement.

    Args:
        ids: sample ids `[N]`, in any order.
        classes: class of each, `[N]`, or None.
    """

    ids: Tensor
    by_class: Tensor
    block_start: Tensor
    block_size: Tensor

    def __init__(self, ids: np.ndarray, classes: np.ndarray | None) -> None:
        super().__init__()
        if len(ids) == 0:
            raise ConfigError("a memory bank needs training samples, and there are none")
        order = np.argsort(ids, kind="stable")
        labels = np.full(len(ids), -1) if classes is None else np.asarray(classes, dtype=np.int64)[order]
        by_class = np.argsort(labels, kind="stable")
        place = np.empty_like(by_class)
        place[by_class] = np.arange(len(ids))
        _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        known = labels >= 0
        values = {
            "ids": np.asarray(ids, dtype=np.int64)[order],
            "by_class": by_class,
            "block_start": np.where(known, starts[inverse], place),
            "block_size": np.where(known, counts[inverse], 1),
        }
        for name, value in values.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value, dtype=np.int64)), persistent=False)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def rows(self, ids_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bank rows of samples, `[B]`, and which of them are in the bank, `[B]` (others have row 0)."""
        rows_B = torch.searchsorted(self.ids, ids_B).clamp_max(len(self) - 1)
        known_B = self.ids[rows_B] == ids_B
        return rows_B.where(known_B, 0), known_B

    def draw(self, rows_B: Tensor, known_B: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` rows of other classes for each row, `[B, K]`, and whether there are any, `[B]`."""
        start_B, size_B = self.block_start[rows_B], self.block_size[rows_B].where(known_B, 0)
        others_B = len(self) - size_B
        lots_BK = torch.rand(rows_B.shape[0], count, dtype=torch.float64, device=rows_B.device)
        drawn_BK = (lots_BK * others_B[:, None]).long().minimum((others_B - 1).clamp_min(0)[:, None])
        drawn_BK = drawn_BK + torch.where(drawn_BK >= start_B[:, None], size_B[:, None], 0)
        return self.by_class[drawn_BK.clamp_max(len(self) - 1)], others_B > 0


class MemoryBank(nn.Module):
    """Normalised embeddings of all instances, moved towards new ones: `M_i <- normalise(m M_i + (1 - m) e_i)`.

    Args:
        rows: number of instances N.
        width: features D.
        momentum: m.
    """

    bank: Tensor

    def __init__(self, rows: int, width: int, momentum: float = 0.5) -> None:
        super().__init__()
        self.momentum = momentum
        side = (width / 3) ** -0.5
        self.register_buffer("bank", (2 * torch.rand(rows, width) - 1) * side)

    def products(self, embedding_BD: Tensor, index_BK: Tensor) -> Tensor:
        """Inner products of every embedding with its own rows of the bank, `[B, K]`."""
        if self.bank.shape[0] <= 8 * index_BK.shape[1]:
            return (embedding_BD @ self.bank.clone().T).gather(1, index_BK)
        return torch.einsum("bd,bkd->bk", embedding_BD, self.bank[index_BK])

    @torch.no_grad()
    def update(self, rows_B: Tensor, known_B: Tensor, embedding_BD: Tensor) -> None:
        """Move the rows of known samples, in every process by the samples of all processes."""
        everyone_BX, _ = gather_rows(torch.stack([rows_B, known_B.long()], dim=1))
        embedding_BD, _ = gather_rows(embedding_BD.detach())
        rows_B = everyone_BX[:, 0]
        old_BD = self.bank[rows_B]
        moved_BD = F.normalize(self.momentum * old_BD + (1 - self.momentum) * embedding_BD.to(old_BD.dtype), dim=1)
        self.bank.index_add_(0, rows_B, (moved_BD - old_BD) * everyone_BX[:, 1:])
