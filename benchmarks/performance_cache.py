"""How fast signals are written and read, and what they take."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..cache import CacheSettings, Needs, SignalCache, SignalStore, TeacherPass
from ..data.arrays import ArrayField, ArraySplit
from ..data.dataset import FieldSpec
from ..signals import Signals
from ..teachers import Teacher, TeacherPool
from .performance_overhead import Bench
from .performance_timing import row

CLASSES, WIDTH, BATCH = 1000, 768, 256


class Looked(nn.Module):
    """Says about a row what stands in a table, so that next to nothing is computed."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(4 * torch.randn(64, CLASSES, generator=rng))
        self.embeddings = nn.Parameter(torch.randn(64, WIDTH, generator=rng))

    def forward(self, number_B: Tensor) -> Signals:
        """Return logits `[B, 1000]` and embeddings `[B, 768]`."""
        place_B = number_B.long().flatten() % 64
        return Signals(self.logits[place_B], embeddings={"image": self.embeddings[place_B]})


def cache(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield rows a second of filling and reading, in memory and on disk, and bytes a sample, by codec."""
    count = 512 if bench.quick else 8192
    numbers = ArrayField(np.arange(count, dtype=np.float32)[:, None], FieldSpec((1,), "float32", "vector"))
    split = ArraySplit("train", np.arange(count), None, {"number": numbers})
    pool = TeacherPool({"t": Teacher(Looked(), ["number"], name="t")}).to(bench.device)
    for codec, needs in (
        *((codec, Needs(logits=True)) for codec in ("fp32", "bf16", "fp16", "int8", "top_k", "sampled")),
        *((codec, Needs(logits=False, embeddings=True)) for codec in ("fp32", "bf16", "fp16", "int8")),
    ):
        what = f"{CLASSES} logits" if needs.logits else f"embedding of {WIDTH}"
        teachers = TeacherPass(pool, ["t"], needs, split, "train", BATCH, bench.device)
        yield from _codec(bench, teachers, codec, f"{what}, {count} rows")


def _codec(bench: Bench, teachers: TeacherPass, codec: Any, case: str) -> Iterator[dict[str, Any]]:
    rows, now = len(teachers.split), bench.clock.now
    with tempfile.TemporaryDirectory() as folder:
        store = SignalStore(Path(folder), "made up", CacheSettings(codec=codec))
        start = now()
        kept = store.cache(teachers)
        yield row("cache", case, codec, "filling, to disk and memory", rows / (now() - start), "rows / s")
        mapped = store.cache(teachers, mapped=True)
        for where, found in (("memory", kept), ("disk, mapped", mapped)):
            spent = _reading(bench, found, rows)
            yield row("cache", case, codec, f"reading batches of {BATCH} from {where}", rows / spent, "rows / s")
        size = sum(table.nbytes for table in store.tables())
        yield row("cache", case, codec, "size of a sample", size / rows, "bytes")


def _reading(bench: Bench, found: SignalCache, rows: int) -> float:
    """Return the seconds of reading all rows in a random order, the best of three times."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(bench.device)
    best = float("inf")
    for _ in range(3):
        start = bench.clock.now()
        for ids_B in order.split(BATCH):
            said = found({"id": ids_B})["t"]
            for value in (said.logits, *said.embeddings.values()):
                assert value is None or value.shape[0] == len(ids_B)
        best = min(best, bench.clock.now() - start)
    return best
