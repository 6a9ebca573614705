"""What a gate remembers of the batches that it routed.

Shapes: R rows of the memory, B rows of a batch, D numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import gather_rows


class Replay(nn.Module):
    """The newest rows, over all processes, in the order in which they came.

    Everything lies in buffers, so a resumed run remembers the same, and every process holds the same rows.

    Args:
        rows: rows that it holds.
        width: numbers D of a row.
    """

    memory: Tensor
    position: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(rows, width))
        self.register_buffer("position", torch.zeros(3, dtype=torch.int64))
        self.next, self.filled, self.batches = 0, 0, 0
        self.register_load_state_dict_post_hook(_look_again)

    @torch.no_grad()
    def add(self, rows_BD: Tensor) -> None:
        """Add the rows of a batch, of all processes; every process has to call this."""
        rows, _ = gather_rows(rows_BD.to(self.memory.dtype))
        size = len(self.memory)
        rows = rows[-size:]
        self.memory[(self.next + torch.arange(len(rows), device=rows.device)) % size] = rows
        self._note((self.next + len(rows)) % size, min(size, self.filled + len(rows)), self.batches + 1)

    def chunks(self, rows: int) -> Iterator[Tensor]:
        """Yield the rows, oldest first, `rows` at a time, `[B, D]`."""
        first = self.next - self.filled
        for start in range(0, self.filled, rows):
            count = min(rows, self.filled - start)
            yield self.memory[(first + start + torch.arange(count, device=self.memory.device)) % len(self.memory)]

    def clear(self) -> None:
        """Forget everything."""
        self.memory.zero_()
        self._note(0, 0, 0)

    def _note(self, following: int, filled: int, batches: int) -> None:
        self.next, self.filled, self.batches = following, filled, batches
        self.position.copy_(torch.tensor([following, filled, batches]))


def _look_again(replay: nn.Module, incompatible: Any) -> None:
    assert isinstance(replay, Replay)
    replay.next, replay.filled, replay.batches = replay.position.tolist()
