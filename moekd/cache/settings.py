"""Where signals of frozen teachers are kept, how, and how much of them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .codecs import Codec, Kind
from .needs import LOGITS

#: Environment variable with the folder of caches.
HOME = "MOEKD_CACHE_HOME"


@dataclass(frozen=True)
class CacheSettings:
    """The section `cache` of a config.

    Attributes:
        folder: folder of the signals on disk, shared by all runs that name it; with it, signals in memory are kept
            there for other runs too. None: `$MOEKD_CACHE_HOME` or `cache` in the working folder, and only for stages
            whose signals go to disk.
        codec: how signals are stored.
        logits: how logits are stored; None: as the others.
        k: classes that `top_k` keeps, or draws of `sampled`.
        temperature: temperature of the loss that reads logits of `top_k` or `sampled`.
        memory_gb: most memory that the signals of a stage may take.
        disk_gb: most space that the signals of a stage may take on disk.
        missing: what a signal that is not in the folder leads to: `compute` it, or `raise`.
    """

    folder: str | None = None
    codec: Kind = "fp32"
    logits: Kind | None = None
    k: int = 16
    temperature: float = 1.0
    memory_gb: float = 2.0
    disk_gb: float = 20.0
    missing: str = "compute"

    def codec_of(self, signal: str) -> Codec:
        """Return how a signal is stored."""
        kind = self.logits if signal == LOGITS and self.logits is not None else self.codec
        return Codec(kind, self.k, self.temperature) if kind in ("top_k", "sampled") else Codec(kind)

    def why_not_on_disk(self, nbytes: int) -> str | None:
        """Return why so many bytes can't be kept on disk, or None if they can."""
        if nbytes > self.disk_gb * 1e9:
            return f"more than cache.disk_gb: {self.disk_gb:g}"
        here = self.place.absolute()
        free = shutil.disk_usage(next(path for path in (here, *here.parents) if path.exists())).free
        return None if nbytes <= free else f"and {self.place} has {free / 1e9:.2f} GB left"

    @property
    def place(self) -> Path:
        """The folder on disk."""
        return Path(self.folder or os.environ.get(HOME) or "cache")
