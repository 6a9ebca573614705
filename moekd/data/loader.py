"""Batches in an order that is a pure function of (seed, epoch), whatever the number of processes or workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from ..errors import DataError
from .dataset import Batch, Ids, Split
from .pairing import Batching
from .workers import WatchedLoader

WINDOW = 4
#: Seconds in which a worker process gives its next batch; no sane batch takes as long.
WORKER_TIMEOUT = 300.0


class BatchPlan(Sampler[list[int]]):
    """Which rows this process reads, batch by batch.

    The rows of an epoch (shuffled or not) are cut into global batches of `batch_size`; each process reads one
    contiguous slice of every global batch. Nothing is dropped: the last batch may be smaller, and when fewer rows than
    processes would be left for it, these rows join the batch before. All processes therefore see the same number of
    batches, and none of them is empty.

    Args:
        length: rows in the split.
        batch_size: rows of a global batch, over all processes.
        shuffle: draw a permutation from (seed, epoch), or keep the order of the split.
        seed: seed of the order, >= 0.
        epoch: epoch, >= 0.
        start_batch: first global batch to give; the earlier ones are left out without reading them.
        rank: this process.
        world: number of processes.
        blocks: block of each row, see `Split`; a shuffled order then stays within windows of 4 blocks.
        batching: makes up shuffled batches in another way, in which rows may come again; blocks do not count then.

    Raises:
        DataError: an impossible combination, with the numbers.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        epoch: int = 0,
        start_batch: int = 0,
        rank: int = 0,
        world: int = 1,
        blocks: Ids | None = None,
        batching: Batching | None = None,
    ) -> None:
        self.batching = batching if shuffle else None
        if self.batching is not None:
            batch_size = self.batching.batch_size(batch_size, world)
            length = self.batching.length(batch_size)
        if not 0 <= rank < world:
            raise DataError(f"rank {rank} is not one of {world} processes")
        if batch_size < world or length < world:
            raise DataError(
                f"{world} processes need at least {world} rows in a global batch and in the split; "
                f"batch_size is {batch_size}, the split has {length} rows"
            )
        self.length, self.batch_size, self.shuffle = length, batch_size, shuffle
        self.seed, self.epoch, self.rank, self.world = seed, epoch, rank, world
        self.blocks = blocks
        full, rest = divmod(length, batch_size)
        self.total = full + (rest >= world or (rest > 0 and full == 0))
        if not 0 <= start_batch <= self.total:
            raise DataError(f"start_batch {start_batch} is not in 0 to {self.total}, the batches of an epoch")
        self.start_batch = start_batch

    def order(self) -> Ids:
        """Return the rows in the order of the epoch, for all processes together."""
        if not self.shuffle:
            return np.arange(self.length)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.epoch])))
        if self.batching is not None:
            return self.batching.order(self.batch_size, generator)
        if self.blocks is None:
            return generator.permutation(self.length)
        number = _numbered(self.blocks)
        window = generator.permutation(int(number.max()) + 1)[number] // WINDOW
        return _sorted_within(window, generator.random(self.length))

    def __len__(self) -> int:
        return self.total - self.start_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for batch in range(self.start_batch, self.total):
            start = batch * self.batch_size
            stop = self.length if batch == self.total - 1 else start + self.batch_size
            rows = stop - start
            mine = slice(start + rows * self.rank // self.world, start + rows * (self.rank + 1) // self.world)
            yield order[mine].tolist()


def _numbered(blocks: Ids) -> Ids:
    """Return the block of each row as a number from 0, in the order of the blocks' own numbers."""
    steps = np.diff(blocks)
    if (steps >= 0).all():  # no need to sort, as a rule
        return np.concatenate([[0], np.cumsum(steps > 0)])
    return np.unique(blocks, return_inverse=True)[1]


def _sorted_within(window: Ids, keys: NDArray[np.float64]) -> Ids:
    """Return what `np.lexsort([keys, window])` does, window by window: many small sorts take less than one large."""
    count = int(window.max()) + 1
    narrow = window.astype(np.int16) if count < 2**15 else window  # 16 bits are sorted by their digits
    order = np.argsort(narrow, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(window, minlength=count))[:-1])
    return np.concatenate([part[np.argsort(keys[part], kind="stable")] for part in parts])


def make_loader(
    split: Split,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    start_batch: int = 0,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    timeout: float = WORKER_TIMEOUT,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return a loader for one epoch (or the tail of it) of a split; see `BatchPlan` for the order.

    With `num_workers=0` batches are read in the calling process: the fastest way for splits in memory. Workers pay off
    where a sample must be decoded. The loader draws nothing from the global random number generators.

    Args:
        split: what to read.
        batch_size: rows of a global batch, over all processes.
        shuffle: draw the order from (seed, epoch).
        seed: seed of the order.
        epoch: epoch.
        start_batch: first global batch to give, to continue in the middle of an epoch.
        rank: this process.
        world: number of processes.
        num_workers: worker processes that read ahead.
        timeout: seconds to wait for a batch of a worker before failing; 0 waits for ever. Only with workers.
        pin_memory: give tensors in page-locked memory, for fast copies to a GPU.
    """
    plan = BatchPlan(
        len(split),
        batch_size,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        start_batch=start_batch,
        rank=rank,
        world=world,
        blocks=split.blocks,
        batching=split.batching,
    )
    generator = torch.Generator().manual_seed(seed)
    return WatchedLoader(split, plan, num_workers, timeout, pin_memory=pin_memory, generator=generator)
