"""Random numbers that belong to a sample and a step, not to a process.

A counter-based generator: every number is a function of (seed, number of the draw, sample id, column). So a run
resumes exactly from one integer, and one process and many draw the same numbers for the same rows, which the state of
a sequential generator does not give.

Shapes: B batch, R rows (instances, tokens or pixels), T columns (teacher variants).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..step import Step

_BITS = 24


def _signed(value: int) -> int:
    """Return the int64 with the same bits as an unsigned 64-bit number."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


class SampleDraws(nn.Module):
    """Uniform numbers in [0, 1) for every sample of a step.

    Each training step draws anew; the number of draws so far is a buffer, so checkpoints hold it. Outside of training
    the draw 0 is used: a fixed choice for each sample, the same in every validation.

    Args:
        seed: another seed, another independent sequence.
    """

    count: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, step: Step, columns: int, rows: int | None = None) -> Tensor:
        """Return uniform numbers `[R, columns]`, float32.

        Args:
            step: whose samples they are for.
            columns: numbers for each row.
            rows: number R of rows, a multiple of B: the positions of the first sample, of the second, ...; B if None.
        """
        ids_B = step.batch["id"]
        positions = 1 if rows is None or not len(ids_B) else rows // len(ids_B)
        if step.training:
            self.count += 1
        count = self.count if step.training else torch.zeros_like(self.count)
        return uniform(ids_B, positions * columns, self.seed, count.to(ids_B.device)).view(-1, columns)


def uniform(ids_B: Tensor, columns: int, seed: int, count: Tensor) -> Tensor:
    """Return `[B, columns]` numbers in [0, 1), multiples of 2^-24; a function of the arguments alone.

    The mixing function is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA
    2014), applied to the seed, the draw, the id and the column in turn.
    """
    start = _mix(torch.full_like(count, seed) + _GOLDEN)
    draw = _mix(start + count * _GOLDEN)
    rows_B1 = _mix(draw + ids_B.to(torch.int64) * _GOLDEN)[:, None]
    columns_T = torch.arange(1, columns + 1, device=ids_B.device)
    mixed_BT = _mix(rows_B1 + columns_T * _GOLDEN)
    return _shift(mixed_BT, 64 - _BITS).to(torch.float32) / (1 << _BITS)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _FIRST
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift to the right as an unsigned number."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
