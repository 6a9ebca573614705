"""What the trainer offers to a stage."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..cache import CacheSettings, SignalStore
from ..data import Split, make_loader
from ..data.loader import WORKER_TIMEOUT, BatchPlan
from ..errors import DataError, did_you_mean
from ..evaluation import EmbeddingSettings
from ..progress import Progressbar
from ..step import Models
from .recovery import NonFinitePolicy


@dataclass
class RunData:
    """The splits of a run and how they are read.

    Attributes:
        splits: by name; "train" is what stages train on.
        class_names: names by label.
        batch_size: rows of a global batch.
        eval_batch_size: rows of a batch in validation and tests.
        num_workers: loader processes.
        seed: seed of the data order.
        void_class: class that does not count in metrics, see `Dataset`.
        fields: how the data set describes the batch fields: shape, dtype, modality, and how they were prepared.
        embeddings: what is measured on embeddings; None: nothing.
        base_classes: classes of which training has labels where others are novel; None: all.
        worker_timeout: seconds in which a loader process gives its next batch.
    """

    splits: Mapping[str, Split]
    class_names: list[str]
    batch_size: int
    eval_batch_size: int
    num_workers: int
    seed: int
    void_class: int | None = None
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    embeddings: EmbeddingSettings | None = None
    base_classes: list[int] | None = None
    worker_timeout: float = WORKER_TIMEOUT

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    def batches(self, name: str) -> int:
        """Return the number of global batches of an epoch of training on a split."""
        split = self.split(name)
        return len(BatchPlan(len(split), self.batch_size, shuffle=True, batching=split.batching))

    def split(self, name: str) -> Split:
        """Return a split, or say which there are."""
        if name not in self.splits:
            hint = did_you_mean(name, self.splits) or f"; splits: {', '.join(self.splits)}"
            raise DataError(f"the data set has no split '{name}'{hint}")
        return self.splits[name]

    def eval_loader(self, split: str | Split, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return one process's share of a split, in order."""
        return make_loader(
            self.split(split) if isinstance(split, str) else split,
            max(self.eval_batch_size, world),
            shuffle=False,
            rank=rank,
            world=world,
            num_workers=self.num_workers,
            timeout=self.worker_timeout,
        )

    def kept_ids(self, name: str) -> list[int] | None:
        """Return the ids of the rows of a split whose embeddings are measured, evenly spaced; None: all."""
        ids, most = self.split(name).ids, self.embeddings.max_rows if self.embeddings is not None else None
        if most is None or len(ids) <= most:
            return None
        return [int(i) for i in ids[np.linspace(0, len(ids) - 1, most).astype(np.int64)]]


@dataclass
class StageContext:
    """Models, data and services for a stage.

    Attributes:
        accelerator: device, precision, processes.
        models: student, pool and router of the phase.
        data: splits and loaders.
        phase: "main" or a baseline's name.
        log: writes a record to the run's metrics and trackers.
        save: writes a checkpoint with the stage's own state.
        progress: progress bar.
        log_every: steps between two records.
        checkpoint_every: steps between two checkpoints inside of an epoch; None saves at the end of epochs only.
        stops: told the step, returns the signal that asks the run to save and stop, or 0.
        store: keeps signals of frozen teachers for other runs; None: each stage computes its own.
        disk: keeps those that do not fit in memory; the same folder where there is a `store`.
        cache: codecs and limits of the signals that are kept.
        overlap: let live teachers run one batch ahead of the student.
        nonfinite: what a loss or gradient that is no number leads to.
    """

    accelerator: Accelerator
    models: Models
    data: RunData
    phase: str
    log: Callable[[dict[str, Any]], None]
    save: Callable[[Mapping[str, Any]], None]
    progress: Progressbar
    log_every: int = 20
    checkpoint_every: int | None = None
    stops: Callable[[int], int] = lambda step: 0
    store: SignalStore | None = None
    disk: SignalStore | None = None
    cache: CacheSettings = field(default_factory=CacheSettings)
    overlap: bool = False
    nonfinite: NonFinitePolicy = field(default_factory=NonFinitePolicy)

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        return self.accelerator.device

    def train_loader(self, stage: str, epoch: int, start_batch: int = 0, split: str = "train") -> DataLoader[Any]:
        """Return the shuffled training batches of an epoch; the order depends on (seed, stage name, epoch) alone."""
        return make_loader(
            self.data.split(split),
            self.data.batch_size,
            shuffle=True,
            seed=zlib.crc32(f"{self.data.seed}/{stage}".encode()),
            epoch=epoch,
            start_batch=start_batch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            num_workers=self.data.num_workers,
            timeout=self.data.worker_timeout,
        )

    def eval_loader(self, split: str) -> DataLoader[Any]:
        """Return this process's share of a split, in order."""
        return self.data.eval_loader(split, self.accelerator.process_index, self.accelerator.num_processes)
