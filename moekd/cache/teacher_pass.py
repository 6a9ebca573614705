"""Running frozen teachers over the rows of a split, in any order and with any pause.

Shapes: b rows of a batch, K views of a sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..allocator import sparing
from ..data import Split
from ..errors import DataError
from ..model import Batch
from ..teachers import TeacherPool
from ..transforms import ReplayableTransform
from .codecs import Like
from .needs import Needs
from .settings import CacheSettings

#: Signals by teacher variant and name, `[b * K, ...]`, the views of a sample one after the other.
Said = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class TeacherPass:
    """What is run, on what, and how.

    Attributes:
        pool: teachers and masks, frozen and in eval mode.
        variants: which of them.
        needs: signals that are wanted.
        split: the data.
        split_name: its name, which is part of the identity of what is computed.
        batch_size: rows of a batch.
        device: where teachers run.
        precision: name of the autocast type, "no" without.
        autocast: context in which they run.
        num_workers: loader processes.
        transforms: give the views of the samples, all of them the same number of views; none: the samples as they are.
        on_rows: told the number of samples done, for a progress bar.
    """

    pool: TeacherPool
    variants: Sequence[str]
    needs: Needs
    split: Split
    split_name: str
    batch_size: int
    device: torch.device
    precision: str = "no"
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    num_workers: int = 0
    transforms: Sequence[ReplayableTransform] = ()
    on_rows: Callable[[int], None] | None = None

    @property
    def views(self) -> int:
        """Views of a sample."""
        return (self.transforms[0].views or 1) if self.transforms else 1

    @property
    def inputs(self) -> str:
        """What the views of a sample are, as JSON; "" for the samples as they are."""
        if not self.transforms:
            return ""
        drawn = [transform.identity() for transform in self.transforms]
        return json.dumps({"views": self.views, "transforms": drawn}, sort_keys=True)

    def shapes(self) -> dict[str, dict[str, Like]]:
        """Return shape and type of every signal by variant, found with two samples.

        Raises:
            DataError: no sample can be read.
        """
        forwards = self.pool.forwards
        for start in range(0, len(self.split), 2):
            batch = self.split.__getitems__(list(range(start, min(start + 2, len(self.split)))))
            if len(batch["id"]):
                said = self.run(batch, self.variants)
                self.pool.forwards = forwards
                return {
                    name: {key: Like(tuple(value.shape[1:]), value.dtype) for key, value in signals.items()}
                    for name, signals in said.items()
                }
        raise DataError(f"split '{self.split_name}' has no readable samples")

    def nbytes(self, settings: CacheSettings) -> int:
        """Return the bytes that the signals take."""
        rows, shapes = len(self.split) * self.views, self.shapes().values()
        return rows * sum(settings.codec_of(key).bytes_a_row(like) for found in shapes for key, like in found.items())

    def batches(self, pieces: Sequence[range]) -> Iterator[tuple[range, Tensor, Batch]]:
        """Read contiguous pieces of the split's rows.

        Yields:
            The piece, the rows of the split that could be read, and their batch.
        """
        loader = DataLoader(
            self.split,
            batch_sampler=[list(piece) for piece in pieces],
            collate_fn=_as_read,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # nothing is drawn from the global one: cached is live with dropout too
        )
        for piece, batch in zip(pieces, sparing(loader), strict=True):
            mine = torch.from_numpy(np.asarray(self.split.ids[piece.start : piece.stop]))
            sorted_ids, order = mine.sort()
            place = torch.searchsorted(sorted_ids, batch["id"]).clamp_max(len(mine) - 1)
            own = sorted_ids[place] == batch["id"]
            if not bool(own.all()):
                batch = {key: value[own] if isinstance(value, Tensor) else value for key, value in batch.items()}
            yield piece, piece.start + order[place[own]], batch

    @torch.no_grad()
    def run(self, batch: Batch, variants: Sequence[str]) -> Said:
        """Return what the variants say about all views of the samples of a batch."""
        moved = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
        said = [self._view(moved, variants, view) for view in range(self.views)]
        if len(said) == 1:
            return said[0]
        return {
            name: {key: torch.stack([view[name][key] for view in said], dim=1).flatten(0, 1) for key in signals}
            for name, signals in said[0].items()
        }

    def say(self, batch: Batch, variants: Sequence[str]) -> Said:
        """Return what the variants say about a batch as it is."""
        found = self.pool(batch, list(variants), features=self.needs.features)
        return {name: self.needs.pick(signals) for name, signals in found.items()}

    def _view(self, batch: Batch, variants: Sequence[str], view: int) -> Said:
        for transform in self.transforms:
            batch = transform.replay(batch, torch.full_like(batch["id"], view))
        with self.autocast():
            return self.say(batch, variants)


def _as_read(batch: Any) -> Any:
    return batch
