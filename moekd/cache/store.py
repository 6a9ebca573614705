"""Logits of frozen teachers in a folder, for all runs whose teachers are the same.

Shapes: N samples, T teacher variants, C classes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

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

logger = logging.getLogger(__name__)

Fill = Callable[[TeacherPool, list[str], Iterable[Batch], torch.device, Callable[[int], None] | None], LogitCache]


class LogitStore:
    """One safetensors file for each (teacher variant with its weights, data set, split, samples).

    A file appears complete or not at all; processes that compute the same one at the same time write the same. A file
    that was damaged later is noticed by its checksum and written again. A file that can't be written is a warning: the
    run goes on with what it has computed.

    Args:
        folder: of the files.
        dataset_fingerprint: identity of the data.
        precision: what else the logits depend on: device type and autocast type.
    """

    def __init__(self, folder: Path, dataset_fingerprint: str, precision: str) -> None:
        self.folder = folder
        self._identity = f"{dataset_fingerprint}|{precision}"

    def cache(self, split: str, ids_N: NDArray[np.int64]) -> Fill:
        """Return a function like `build_logit_cache` that reads what is there, and computes and keeps the rest.

        Args:
            split: name of the split.
            ids_N: ids of its samples. Where some of them can't be read, nothing is kept.
        """

        def fill(
            pool: TeacherPool,
            variants: list[str],
            batches: Iterable[Batch],
            device: torch.device,
            on_batch: Callable[[int], None] | None = None,
        ) -> LogitCache:
            expected = torch.from_numpy(np.sort(ids_N))
            files = {name: self._file(pool, name, split, expected) for name in variants}
            found = {name: _read(file, expected) for name, file in files.items()}
            missing = [name for name, logits in found.items() if logits is None]
            if missing:
                fresh = build_logit_cache(pool, missing, batches, device, on_batch)
                complete = torch.equal(fresh.ids_N.cpu(), expected)
                for index, name in enumerate(missing):
                    found[name] = logits_NC = fresh.logits_NTC[:, index].cpu()
                    if complete:
                        _write(files[name], expected, logits_NC)
                if len(missing) == len(variants):
                    return fresh
                if not complete:
                    return build_logit_cache(pool, variants, batches, device, on_batch)
            logits = torch.stack([value for value in found.values() if value is not None], dim=1)
            return LogitCache(variants, expected.to(device), logits.to(device))

        return fill

    def _file(self, pool: TeacherPool, variant: str, split: str, ids_N: Tensor) -> Path:
        ids = hashlib.sha256(_bytes(ids_N)).hexdigest()
        digest = hashlib.sha256(f"{self._identity}|{split}|{ids}|{pool.fingerprint(variant)}".encode())
        return self.folder / f"{digest.hexdigest()[:40]}.safetensors"


def _read(file: Path, expected: Tensor) -> Tensor | None:
    """Return the logits of a file, or None if there is none or it is damaged."""
    if not file.is_file():
        return None
    try:
        tensors = read_tensors(file)
    except CheckpointError as error:
        logger.warning("%s; its logits are computed again", error)
        return None
    ids, logits = tensors.get("ids"), tensors.get("logits")
    checksum = tensors.get("sha256", torch.empty(0))
    if ids is None or logits is None or not torch.equal(checksum, _checksum(ids, logits)):
        logger.warning("%s is damaged; its logits are computed again", file)
        return None
    return logits if torch.equal(ids, expected) else None


def _write(file: Path, ids_N: Tensor, logits_NC: Tensor) -> None:
    logits_NC = logits_NC.contiguous()
    content = save({"ids": ids_N, "logits": logits_NC, "sha256": _checksum(ids_N, logits_NC)})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)
    except OSError as error:
        logger.warning("the logits of a teacher can't be kept for other runs in %s: %s", file.parent, error)


def _checksum(ids_N: Tensor, logits_NC: Tensor) -> Tensor:
    """Return a sha256 `[32]`, since safetensors does not notice changed bytes."""
    digest = hashlib.sha256(f"{logits_NC.dtype}|{tuple(logits_NC.shape)}|".encode())
    digest.update(_bytes(ids_N))
    digest.update(_bytes(logits_NC))
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _bytes(values: Tensor) -> bytes:
    return values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
