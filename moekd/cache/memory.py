"""Logits of frozen teachers, computed once and kept in memory.

Shapes: N samples, B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..errors import DataError
from ..model import Batch
from ..signals import PoolSignals
from ..teachers import TeacherPool


class LogitCache:
    """Gives the logits of frozen teacher variants by sample id.

    Args:
        names: variants on the axis T.
        ids_N: sample ids.
        logits_NTC: their logits `[N, T, C, ...]`.
    """

    def __init__(self, names: Sequence[str], ids_N: Tensor, logits_NTC: Tensor) -> None:
        order = ids_N.argsort()
        self.names = list(names)
        self.ids_N, self.logits_NTC = ids_N[order], logits_NTC[order]

    def __call__(self, batch: Batch) -> PoolSignals:
        """Return the signals of a batch's samples.

        Raises:
            DataError: a sample is not in the cache (checked on the CPU; a lookup on a GPU does not wait for the
            answer).
        """
        ids_B = batch["id"].to(self.ids_N.device)
        rows_B = torch.searchsorted(self.ids_N, ids_B).clamp_max(len(self.ids_N) - 1)
        if self.ids_N.device.type == "cpu" and not torch.equal(self.ids_N[rows_B], ids_B):
            missing = ids_B[self.ids_N[rows_B] != ids_B]
            raise DataError(f"sample {int(missing[0])} is not in the cache of teacher logits; rebuild it for this data")
        return PoolSignals.from_logits(self.names, self.logits_NTC[rows_B])

    @property
    def nbytes(self) -> int:
        """Bytes that the logits take."""
        return self.logits_NTC.numel() * self.logits_NTC.element_size()


@torch.no_grad()
def build_logit_cache(
    pool: TeacherPool,
    variants: Sequence[str],
    batches: Iterable[Batch],
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
) -> LogitCache:
    """Run the variants once over all batches.

    Args:
        pool: teachers and masks, frozen.
        variants: names on the axis T.
        batches: every sample once.
        device: where teachers run and logits stay.
        on_batch: called with the number of rows done, for a progress bar.
    """
    ids, logits = [], []
    for batch in batches:
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        logits.append(pool(moved, variants).logits)
        ids.append(moved["id"])
        if on_batch:
            on_batch(len(moved["id"]))
    return LogitCache(variants, torch.cat(ids), torch.cat(logits))
