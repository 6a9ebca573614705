"""Seeds derived by name, and the state of every generator for checkpoints."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from .distributed import gather_rows, world_size
from .errors import CheckpointError
from .state_codec import flatten, unflatten

_SKELETON = "$skeleton"


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
    """Return the states of this process's global generators, of its GPU too, as tensors, numbers and tuples."""
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
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set this process's global generators to what `random_state` returned.

    Raises:
        CheckpointError: the state does not fit this machine: one of the two has a GPU.
    """
    stored, here = len(state["cuda"]), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if bool(stored) != bool(here):
        raise CheckpointError(f"the checkpoint holds {stored} GPU generators, here are {here}")
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu().clone())  # it misreads views
    if stored:
        device = torch.cuda.current_device()
        torch.cuda.set_rng_state(state["cuda"][device if stored > 1 else 0].cpu().clone())


def gather_random_states(device: torch.device) -> list[dict[str, Any]]:
    """Return `random_state` of every process, in their order; all processes have to call this.

    Args:
        device: on which processes exchange tensors.
    """
    if world_size() == 1:
        return [random_state()]
    tensors, skeleton = flatten(random_state())
    tensors[_SKELETON] = torch.frombuffer(bytearray(json.dumps(skeleton).encode()), dtype=torch.uint8)
    content = save(tensors)
    mine = torch.frombuffer(bytearray(len(content).to_bytes(8, "little") + content), dtype=torch.uint8)
    rows, _ = gather_rows(mine[:, None].to(device))
    left, states = rows[:, 0].cpu().numpy().tobytes(), list[dict[str, Any]]()
    while left:
        end = 8 + int.from_bytes(left[:8], "little")
        found, left = load(left[8:end]), left[end:]
        states.append(unflatten(found, json.loads(found.pop(_SKELETON).numpy().tobytes())))
    return states


def restore_gathered(stored: Mapping[str, Any], rank: int) -> None:
    """Set the generators of one process from the part "random" of a checkpoint: `{"ranks": gathered states}`.

    Raises:
        CheckpointError: it holds no state of this process, or one that does not fit this machine.
    """
    ranks = stored["ranks"]
    if rank >= len(ranks):
        raise CheckpointError(f"the checkpoint holds the generators of {len(ranks)} processes, none of process {rank}")
    if "main" in stored:  # the first form: all of the main process, of the others that of torch alone
        restore_random_state(stored["main"])
        torch.set_rng_state(ranks[rank].clone())
    else:
        restore_random_state(ranks[rank])
