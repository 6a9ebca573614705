"""Signals of frozen teachers by sample, as objectives and gates read them.

Shapes: N samples, B batch, T teacher variants, K views of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import DataError
from ..model import Batch
from ..signals import PoolSignals
from .codecs import Codec, Encoded
from .column import Column
from .exchange import fill_together
from .fill import Wanted, fill, shard_rows
from .needs import LOGITS, joined
from .settings import CacheSettings
from .teacher_pass import TeacherPass


class SignalCache:
    """Gives the signals of frozen teacher variants by sample id (and view).

    Args:
        ids_N: sample ids.
        columns: by variant, in pool order, and by name of the signal; their rows are the samples in the order of
            `ids_N`, the K views of a sample one after the other.
        known_N: samples whose signals are there; the others could not be read.
        views: K; with more than one, a batch names its views in the field `view` `[B]`.
    """

    def __init__(
        self,
        ids_N: Tensor,
        columns: Mapping[str, Mapping[str, Column]],
        known_N: Tensor | None = None,
        views: int = 1,
    ) -> None:
        ids_N = ids_N.cpu()
        rows = torch.arange(len(ids_N)) if known_N is None else known_N.cpu().nonzero()[:, 0]
        order = ids_N[rows].argsort()
        self.ids_N, self.rows_N, self.views = ids_N[rows][order], rows[order], views
        self.columns = {name: dict(signals) for name, signals in columns.items()}
        self.stacked: Tensor | None = None
        self._stack()

    @property
    def names(self) -> list[str]:
        """Variants on the axis T."""
        return list(self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes that the signals take."""
        stacked = 0 if self.stacked is None else self.stacked.numel() * self.stacked.element_size()
        return stacked + sum(column.nbytes for signals in self.columns.values() for column in signals.values())

    def to(self, device: torch.device) -> SignalCache:
        """Move the signals, so that they are looked up there."""
        self.ids_N, self.rows_N = self.ids_N.to(device), self.rows_N.to(device)
        self.stacked = None if self.stacked is None else self.stacked.to(device)
        for signals in self.columns.values():
            for column in signals.values():
                column.to(device)
        return self

    def __call__(self, batch: Batch) -> PoolSignals:
        """Return the signals of a batch's samples.

        Raises:
            DataError: a sample is not in the cache (checked on the CPU; a lookup on a GPU does not wait for the
                answer), or the batch does not say which views it shows.
        """
        device = batch["id"].device
        rows_B = self.rows_of(batch["id"])
        if self.views > 1:
            if "view" not in batch:
                raise DataError(f"the cache holds {self.views} views of a sample, but the batch has no field 'view'")
            rows_B = rows_B * self.views + batch["view"].to(rows_B.device)
        stacked = None if self.stacked is None else self.stacked.index_select(0, rows_B).to(device)
        said = {}
        for index, (name, signals) in enumerate(self.columns.items()):
            found = {key: column(rows_B).to(device) for key, column in signals.items()}
            if stacked is not None:
                found[LOGITS] = stacked[:, index]
            said[name] = joined(found)
        return PoolSignals(said, stacked)

    def rows_of(self, ids_B: Tensor) -> Tensor:
        """Return the rows of some samples."""
        ids_B = ids_B.to(self.ids_N.device)
        places_B = torch.searchsorted(self.ids_N, ids_B).clamp_max(len(self.ids_N) - 1)
        if self.ids_N.device.type == "cpu" and not torch.equal(self.ids_N[places_B], ids_B):
            missing = ids_B[self.ids_N[places_B] != ids_B]
            raise DataError(
                f"sample {int(missing[0])} is not in the cache of teacher signals; rebuild it for this data"
            )
        return self.rows_N[places_B]

    def _stack(self) -> None:
        """Keep the logits of all variants in one tensor, of which a batch is picked at once."""
        plain = [signals[LOGITS].plain if LOGITS in signals else None for signals in self.columns.values()]
        first = plain[0] if plain else None
        if first is None or any(p is None or p.shape != first.shape or p.dtype != first.dtype for p in plain):
            return
        self.stacked = torch.stack([p for p in plain if p is not None], dim=1)
        for signals in self.columns.values():
            del signals[LOGITS]


def cache_in_memory(
    teachers: TeacherPass, settings: CacheSettings | None = None, together: bool = False
) -> SignalCache:
    """Run the teachers once over all samples and keep what they say in memory.

    Args:
        teachers: what to run.
        settings: codecs; exact without.
        together: share the work out over the processes, all of which have to call this; else each does all of it.
    """
    settings = settings or CacheSettings()
    views, total = teachers.views, len(teachers.split)
    found: dict[tuple[str, str], dict[int, Encoded]] = {}
    known_N = torch.zeros(total, dtype=torch.bool)
    wanted, codecs = [], {}
    for variant, signals in teachers.shapes().items():
        for signal, like in signals.items():
            codec = codecs[variant, signal] = settings.codec_of(signal)
            size = shard_rows(like, codec, views)
            wanted.append(Wanted(variant, signal, like, size, set(range(-(-total // size)))))
            found[variant, signal] = {}

    def keep(item: Wanted, index: int, values: Tensor, known: Tensor) -> None:
        codec: Codec = codecs[item.variant, item.signal]
        found[item.variant, item.signal][index] = codec.encode(values, seed=index)
        known_N[index * item.size : index * item.size + len(known)] |= known

    (fill_together if together else fill)(teachers, wanted, keep)
    columns: dict[str, dict[str, Column]] = {name: {} for name in teachers.variants}
    for item in wanted:
        segments = found.pop((item.variant, item.signal))
        sizes = [min(item.size, total - index * item.size) * views for index in sorted(segments)]
        codec = codecs[item.variant, item.signal]
        columns[item.variant][item.signal] = Column(codec, item.like, [segments[i] for i in sorted(segments)], sizes)
    ids_N = torch.from_numpy(teachers.split.ids)
    return SignalCache(ids_N, columns, known_N, views).to(teachers.device)
