"""Logits of frozen teachers in a folder, for all runs whose teachers are the same.

Shapes: N samples, T teacher variants, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from ..atomic import write_bytes
from ..checkpoint import read_tensors
from ..errors import CheckpointError
from ..model import Batch
from ..teachers import TeacherPool
from .memory import LogitCache, build_logit_cache

Fill = Callable[[TeacherPool, list[str], Iterable[Batch], torch.device, Callable[[int], None] | None], LogitCache]


class LogitStore:
    """One safetensors file for each (teacher variant with its weights, data set, split).

    A file appears complete or not at all; processes that compute the same one at the same time write the same.

    Args:
        folder: of the files.
        dataset_fingerprint: identity of the data.
        precision: what else the logits depend on: device type and autocast type.
    """

    def __init__(self, folder: Path, dataset_fingerprint: str, precision: str) -> None:
        self.folder = folder
        self._identity = f"{dataset_fingerprint}|{precision}"

    def cache(self, split: str, ids_N: NDArray[np.int64]) -> Fill:
        """Return a function like `build_logit_cache` that reads what is there, and computes and keeps the rest."""

        def fill(
            pool: TeacherPool,
            variants: list[str],
            batches: Iterable[Batch],
            device: torch.device,
            on_batch: Callable[[int], None] | None = None,
        ) -> LogitCache:
            expected = torch.from_numpy(np.sort(ids_N))
            found = {name: self._read(self._file(pool, name, split), expected) for name in variants}
            missing = [name for name, logits in found.items() if logits is None]
            if missing:
                fresh = build_logit_cache(pool, missing, batches, device, on_batch)
                for index, name in enumerate(missing):
                    found[name] = fresh.logits_NTC[:, index].cpu()
                    if torch.equal(fresh.ids_N.cpu(), expected):
                        self._write(self._file(pool, name, split), expected, found[name])
                if len(missing) == len(variants):
                    return fresh
                if not torch.equal(fresh.ids_N.cpu(), expected):  # rows that can't be read were left out
                    return build_logit_cache(pool, variants, batches, device, on_batch)
            logits = torch.stack([value for value in found.values() if value is not None], dim=1)
            return LogitCache(variants, expected.to(device), logits.to(device))

        return fill

    def _file(self, pool: TeacherPool, variant: str, split: str) -> Path:
        digest = hashlib.sha256(f"{self._identity}|{split}|{pool.fingerprint(variant)}".encode())
        return self.folder / f"{digest.hexdigest()[:40]}.safetensors"

    def _read(self, file: Path, expected: Tensor) -> Any:
        if not file.is_file():
            return None
        try:
            tensors = read_tensors(file)
        except CheckpointError:
            return None
        if not torch.equal(tensors.get("ids", torch.empty(0)), expected):
            return None
        return tensors.get("logits")

    def _write(self, file: Path, ids_N: Tensor, logits_NC: Tensor) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, save({"ids": ids_N, "logits": logits_NC.contiguous()}))
