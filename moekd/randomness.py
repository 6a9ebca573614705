"""Seeds derived by name, and the state of every generator for checkpoints."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .errors import CheckpointError


def derived_seed(seed: int, name: str) -> int:
    """Return a seed that depends on the run's seed and a name, so that parts can be built in any order."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Build something under its own seed; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, name))
        yield


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch; processes draw different numbers."""
    mixed = derived_seed(seed, f"rank {rank}")
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def random_state() -> dict[str, Any]:
    """Return the states of all global generators as tensors, numbers and tuples."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set all global generators to what `random_state` returned.

    Raises:
        CheckpointError: the state does not fit this machine (another number of GPUs).
    """
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        if len(state["cuda"]) != torch.cuda.device_count():
            raise CheckpointError(
                f"the checkpoint holds {len(state['cuda'])} GPU generators, here are {torch.cuda.device_count()}"
            )
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])
