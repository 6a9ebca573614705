"""Self-attention whose values are one number a token and head, without attention maps in memory.

Shapes: B batch, D tokens, H heads, h size of a query of all heads together, n rows of a chunk.

A network that reads one linear combination of what attention gives (attention, output projection, Linear(h -> 1)) needs
no vector values: value projection, output projection and last layer are linear, so they compose to one number a token
and head. Attention then costs `2 B D^2 h` operations where the plain way costs `4 B D^2 h`, and the gradient of the
weights P is a difference of scalars, `dS_ij = g_i P_ij (v_j - o_i)`, where the plain way multiplies matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

#: Bytes of the attention maps that are in memory at once: they stay in a CPU core's cache, or fill a GPU.
CPU_CHUNK, GPU_CHUNK = 2**20, 2**28


def scalar_attention(queries_keys_BDh: Tensor, values_HBD: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """Return `softmax(Q K^T) v` for every head.

    Maps are made a few rows of the batch at a time, and again in the backward pass; gradients are those of plain
    attention to rounding. Half precision is raised to float32 for the softmax.

    Args:
        queries_keys_BDh: queries, then keys, `[B, D, 2h]`; heads lie next to each other, queries are scaled.
        values_HBD: values.
        chunk_bytes: bytes of the maps that are made at once; None chooses by the device.

    Returns:
        `[H, B, D]`, in the type of the values.

    Raises:
        ModelError: in the backward pass, if gradients of gradients are asked for.
    """
    if chunk_bytes is None:
        chunk_bytes = CPU_CHUNK if values_HBD.device.type == "cpu" else GPU_CHUNK
    attended: Tensor = _ScalarAttention.apply(queries_keys_BDh, values_HBD, chunk_bytes)
    return attended


class _ScalarAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries_keys: Tensor, values: Tensor, chunk_bytes: int) -> Tensor:
        values = values.contiguous()
        attended = torch.empty_like(values)
        with _as_written(values.device.type):
            chunks = _Chunks(queries_keys, values, chunk_bytes, maps=1)
            for head, rows in chunks:
                weights = chunks.weights(head, rows)
                torch.bmm(weights, chunks.column(values, head, rows), out=attended[head, rows, :, None])
        ctx.save_for_backward(queries_keys, values, attended)
        ctx.chunk_bytes = chunk_bytes
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled():
            raise ModelError("scalar attention has no second derivatives; take its gradients without create_graph")
        queries_keys, values, attended = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_queries_keys, to_values = torch.empty_like(queries_keys), torch.empty_like(values)
        with _as_written(values.device.type):
            chunks = _Chunks(queries_keys, values, ctx.chunk_bytes, maps=2)
            for head, rows in chunks:
                weights, slopes = chunks.weights(head, rows), chunks.spare(rows)
                incoming = chunks.column(gradient, head, rows)
                torch.bmm(incoming.transpose(1, 2), weights, out=to_values[head, rows, None])
                torch.sub(values[head, rows, None], chunks.column(attended, head, rows), out=slopes)
                slopes.mul_(weights)
                slopes = slopes.to(queries_keys.dtype)
                incoming = incoming.to(queries_keys.dtype)
                keys, queries = chunks.keys(head, rows), chunks.queries(head, rows)
                to_queries_keys[rows, :, chunks.of_queries(head)] = torch.bmm(slopes, keys).mul_(incoming)
                to_queries_keys[rows, :, chunks.of_keys(head)] = torch.bmm(slopes.transpose(1, 2), incoming * queries)
        return to_queries_keys, to_values, None


def _as_written(device: str) -> AbstractContextManager[object]:
    """Return a context without automatic precision, on devices that have it."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class _Chunks:
    """Walks over heads and rows of the batch with buffers for `maps` attention maps of a chunk."""

    def __init__(self, queries_keys: Tensor, values: Tensor, chunk_bytes: int, maps: int) -> None:
        self.queries_keys, self.dtype = queries_keys, values.dtype
        self.count, self.batch, tokens = values.shape
        self.width = queries_keys.shape[2] // 2
        bytes_a_row = maps * max(1, tokens * tokens) * values.element_size()
        self.rows = max(1, min(self.batch, chunk_bytes // bytes_a_row))
        self.buffers = [values.new_empty(self.rows, tokens, tokens) for _ in range(maps)]

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        for start in range(0, self.batch, self.rows):
            for head in range(self.count):
                yield head, slice(start, min(start + self.rows, self.batch))

    def of_queries(self, head: int) -> slice:
        size = self.width // self.count
        return slice(head * size, (head + 1) * size)

    def of_keys(self, head: int) -> slice:
        part = self.of_queries(head)
        return slice(self.width + part.start, self.width + part.stop)

    def queries(self, head: int, rows: slice) -> Tensor:
        return self.queries_keys[rows, :, self.of_queries(head)]

    def keys(self, head: int, rows: slice) -> Tensor:
        return self.queries_keys[rows, :, self.of_keys(head)]

    def column(self, numbers_HBD: Tensor, head: int, rows: slice) -> Tensor:
        return numbers_HBD[head, rows, :, None]

    def spare(self, rows: slice) -> Tensor:
        return self.buffers[1][: rows.stop - rows.start]

    def weights(self, head: int, rows: slice) -> Tensor:
        """Return the attention weights `[n, D, D]`, in a buffer."""
        buffer = self.buffers[0][: rows.stop - rows.start]
        queries, keys = self.queries(head, rows), self.keys(head, rows)
        if queries.dtype == self.dtype:
            torch.bmm(queries, keys.transpose(1, 2), out=buffer)
        else:
            buffer.copy_(torch.bmm(queries, keys.transpose(1, 2)))
        return torch.softmax(buffer, -1, out=buffer)
