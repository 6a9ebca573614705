"""Batches that are episodes of few-shot learning: a few classes, a few examples of each, and queries to tell apart."""

from __future__ import annotations

from copy import copy

import numpy as np

from ..errors import DataError
from .dataset import UNLABELLED, Labels, Split
from .dense import DenseLabels
from .pairing import Batching, Ids
from .subset import Rows


class Episodes(Batching):
    """Every batch of a process is an episode: N classes, and of each K examples and Q queries, all different rows.

    An episode holds the K examples of its first class, of its second, ..., then the queries in the same order of
    classes: the first K rows of a class are its examples, as `prototype_ce` with `shots: K` takes them. Vinyals et al.,
    "Matching Networks for One Shot Learning", NeurIPS 2016, arXiv 1606.04080.

    Classes and rows are drawn anew for each episode, from those classes that have K + Q labelled rows; the others are
    never seen. Several processes take whole episodes in turn, so that a global batch has one for each.

    Args:
        labels: class of every row `[N]`; -1: none.
        ways: N, classes of an episode.
        shots: K, examples of a class.
        queries: Q, further rows of a class.
        per_epoch: episodes of an epoch.

    Raises:
        DataError: numbers below 1 (2 for `ways`), dense labels, or fewer than N classes with enough rows.
    """

    def __init__(self, labels: Labels | None, ways: int, shots: int, queries: int, per_epoch: int) -> None:
        if ways < 2 or min(shots, queries, per_epoch) < 1:
            raise DataError(
                "episodes need at least 2 ways and 1 of shots, queries and per_epoch; found "
                f"{ways}, {shots}, {queries} and {per_epoch}"
            )
        if labels is None or isinstance(labels, DenseLabels) or labels.ndim != 1:
            raise DataError("episodes need one label a row; these rows have none, or maps of labels")
        self.ways, self.shots, self.queries, self.per_epoch = ways, shots, queries, per_epoch
        known = np.flatnonzero(labels != UNLABELLED)
        order = known[np.argsort(labels[known], kind="stable")]
        classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        parts = np.split(order, starts[1:]) if len(classes) else []
        enough = counts >= shots + queries
        #: Rows of each class that is drawn from, and these classes.
        self.rows = [part for part, large in zip(parts, enough, strict=True) if large]
        self.classes: Ids = classes[enough].astype(np.int64)
        if len(self.rows) < ways:
            largest = int(counts.max()) if len(counts) else 0
            raise DataError(
                f"episodes of {ways} classes with {shots} + {queries} rows each: only {len(self.rows)} of "
                f"{len(classes)} classes have {shots + queries} labelled rows, the largest has {largest}; lower ways, "
                "shots or queries, or raise labels"
            )

    @property
    def size(self) -> int:
        """Rows of an episode."""
        return self.ways * (self.shots + self.queries)

    def first(self, count: int) -> Episodes:
        """Return the same with at most so many episodes an epoch."""
        fewer = copy(self)
        fewer.per_epoch = min(count, self.per_epoch)
        return fewer

    def batch_size(self, asked: int, world: int) -> int:
        """Return the rows of an episode for each process; what was asked for does not count.

        Raises:
            DataError: the episodes of an epoch can't be dealt out evenly.
        """
        if self.per_epoch % world:
            raise DataError(
                f"{self.per_epoch} episodes an epoch can't be dealt out evenly to {world} processes; make per_epoch a "
                f"multiple of {world}"
            )
        return self.size * world

    def length(self, batch_size: int) -> int:
        """Return the rows of an epoch."""
        return self.size * self.per_epoch

    def order(self, batch_size: int, generator: np.random.Generator) -> Ids:
        """Return the rows of an epoch, episode by episode."""
        return np.concatenate([self.draw(generator) for _ in range(self.per_epoch)])

    def draw(self, generator: np.random.Generator) -> Ids:
        """Return the rows of one episode: `ways * shots` examples, then `ways * queries` queries."""
        chosen = generator.choice(len(self.rows), self.ways, replace=False)
        many = self.shots + self.queries
        drawn = np.stack([generator.choice(self.rows[index], many, replace=False) for index in chosen])
        return np.concatenate([drawn[:, : self.shots].ravel(), drawn[:, self.shots :].ravel()])


def with_episodes(split: Split, ways: int, shots: int, queries: int, per_epoch: int) -> Split:
    """Return the same rows, read in `Episodes` where they are shuffled, and once each, in order, where they are not."""
    part = Rows(split, np.arange(len(split)), f"{split.name}, episodes")
    part.batching = Episodes(split.labels, ways, shots, queries, per_epoch)
    return part
