"""Batches with a fixed share of labelled rows, where few rows have a label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Ids = NDArray[np.int64]


class Batching:
    """How the batches of an epoch are made up, where rows are not drawn alike."""

    def batch_size(self, asked: int, world: int) -> int:
        """Return the rows of a global batch.

        Args:
            asked: what the config says.
            world: number of processes.
        """
        return asked

    def length(self, batch_size: int) -> int:
        """Return the rows of an epoch, those that come again counted each time."""
        raise NotImplementedError

    def order(self, batch_size: int, generator: np.random.Generator) -> Ids:
        """Return the rows of an epoch, batch by batch."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Pairing(Batching):
    """Labelled and unlabelled rows that every batch holds in the same proportion.

    An epoch shows every unlabelled row once; the labelled rows begin anew, in another order, as often as it takes (the
    loop of DHO's low-shot training, arXiv 2505.07675).

    Args:
        labelled: rows with a label.
        unlabelled: the others.
        share: of the labelled rows in a batch.

    Raises:
        DataError: one of the two is empty.
    """

    labelled: Ids
    unlabelled: Ids
    share: float

    def __post_init__(self) -> None:
        if not len(self.labelled) or not len(self.unlabelled):
            raise DataError(
                f"labelled_share {self.share} needs labelled and unlabelled rows; found {len(self.labelled)} and "
                f"{len(self.unlabelled)}: set `labels`, or leave labelled_share out"
            )

    def counts(self, batch_size: int) -> tuple[int, int]:
        """Return the labelled rows of a batch, at least one and not all, and the number of batches.

        Raises:
            DataError: a batch of one row.
        """
        if batch_size < 2:
            raise DataError("labelled_share needs a batch_size of at least 2")
        count = min(max(1, round(self.share * batch_size)), batch_size - 1)
        return count, -(-len(self.unlabelled) // (batch_size - count))

    def length(self, batch_size: int) -> int:
        """Return the rows of an epoch."""
        count, batches = self.counts(batch_size)
        return count * batches + len(self.unlabelled)

    def order(self, batch_size: int, generator: np.random.Generator) -> Ids:
        """Return the rows of an epoch, batch by batch; within a batch labelled and unlabelled rows are mixed, so that
        every process gets some of both.
        """
        count, batches = self.counts(batch_size)
        rounds = -(-count * batches // len(self.labelled))
        labelled = np.concatenate([generator.permutation(self.labelled) for _ in range(rounds)])
        unlabelled = generator.permutation(self.unlabelled)
        rest = batch_size - count
        parts = []
        for batch in range(batches):
            mine = labelled[batch * count : (batch + 1) * count]
            parts.append(generator.permutation(np.concatenate([mine, unlabelled[batch * rest : (batch + 1) * rest]])))
        return np.concatenate(parts)
