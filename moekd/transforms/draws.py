"""Random numbers without a state: each is a hash of numbers that name it.

The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
OOPSLA 2014, section 5), on 64-bit integers that wrap around: nothing is rounded, so devices agree.

Shapes: B batch, D draws.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_STEP = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def hashes(seed: int, *numbers: Tensor) -> Tensor:
    """Return a hash in [0, 2**63) of the seed and one or more numbers int64 `[B]`, in this order, int64 `[B]`."""
    state = torch.full_like(numbers[0], seed)
    for number in numbers:
        state = _mix((state + _STEP) ^ _mix(number + _STEP))
    return state & (2**63 - 1)


def uniforms(seed: int, ids: Tensor, views: Tensor, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each (sample, view).

    Args:
        seed: seed.
        ids: sample ids int64 `[B]`.
        views: int64 `[B]`.
        count: D.

    Returns:
        float32 `[B, D]`, multiples of 2**-24; the first numbers do not depend on `count`.
    """
    key = hashes(seed, ids, views)[:, None]
    places = torch.arange(1, count + 1, device=ids.device)
    return (_shifted(_mix(key + places * _STEP), 40)).to(torch.float32) * 2**-24


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Shift to the right with zeros from the left; `>>` repeats the sign."""
    return (state >> bits) & (2 ** (64 - bits) - 1)
