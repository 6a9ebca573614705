"""From the features of a mask to queries, keys and values, a few tokens at a time.

Shapes: B batch, D features (each becomes a token), h size of a token, H heads, P = 2h + H numbers read of a token.

An embedding `Linear(D -> D h)` makes the tokens, a projection `[P, h]` reads their queries, keys and one value a head.
As two matrix products over all tokens, both directions move matrices of `B D h` and `D^2 h` numbers through memory. On
a CPU the tokens of a few features stay in the core's cache instead, from the embedding to the projection and, in the
backward pass, from the gradient of the projection to that of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError

#: Bytes of tokens and what is read of them that are worked on at once: about a core's cache.
CHUNK = 2**20


def project_tokens(
    vectors_BD: Tensor, embed: nn.Linear, projection_Ph: Tensor, bias_P: Tensor, heads: int, chunk_bytes: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return `projection(tokens) + bias` of the tokens `embed(vectors)`, as queries and keys, and values.

    Args:
        vectors_BD: features.
        embed: `Linear(D -> D h)`.
        projection_Ph: rows that read queries, then keys, then one value a head.
        bias_P: added to what they read.
        heads: H.
        chunk_bytes: see `CHUNK`; on a CPU in full precision only, elsewhere all tokens are made at once.

    Returns:
        `[B, D, 2h]`, and `[H, B, D]`.

    Raises:
        ModelError: on a CPU, in the backward pass, if gradients of gradients are asked for.
    """
    device = vectors_BD.device.type
    if device == "cpu" and vectors_BD.dtype.itemsize >= 4 and not torch.is_autocast_enabled("cpu"):
        keep = torch.is_grad_enabled()
        found: tuple[Tensor, Tensor] = _ProjectTokens.apply(
            *(vectors_BD, embed.weight, embed.bias, projection_Ph, bias_P, heads, chunk_bytes, keep)
        )
        return found
    tokens_BDh = embed(vectors_BD).unflatten(1, (-1, projection_Ph.shape[1]))
    read_BDP = nn.functional.linear(tokens_BDh, projection_Ph, bias_P)
    queries_keys, values_BDH = read_BDP.split([len(projection_Ph) - heads, heads], dim=2)
    return queries_keys, values_BDH.permute(2, 0, 1)


class _ProjectTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        weight: Tensor,
        bias: Tensor,
        projection: Tensor,
        read_bias: Tensor,
        heads: int,
        chunk_bytes: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        (reads, size), (rows, dim) = projection.shape, vectors.shape
        tokens = vectors.new_empty(rows, dim, size) if keep else None
        queries_keys, values = vectors.new_empty(rows, dim, reads - heads), vectors.new_empty(heads, rows, dim)
        projection_hP = projection.t().contiguous()
        for some, part in _chunks(rows, dim, size, reads * vectors.element_size(), chunk_bytes):
            made = torch.addmm(bias[part], vectors, weight[part].t()).unflatten(1, (-1, size))
            read = torch.addmm(read_bias, made.flatten(0, 1), projection_hP).unflatten(0, made.shape[:2])
            queries_keys[:, some] = read[:, :, :-heads]
            values[:, :, some] = read[:, :, -heads:].permute(2, 0, 1)
            if tokens is not None:
                tokens[:, some] = made
        ctx.save_for_backward(vectors, weight, projection, tokens)
        ctx.chunk_bytes = chunk_bytes
        return queries_keys, values

    @staticmethod
    def backward(ctx: Any, to_queries_keys: Tensor, to_values: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ModelError("masks have no second derivatives on a CPU; take gradients without create_graph")
        vectors, weight, projection, tokens = ctx.saved_tensors
        (rows, dim, size), reads = tokens.shape, len(projection)
        to_vectors = torch.zeros_like(vectors) if ctx.needs_input_grad[0] else None
        to_weight, to_bias = torch.empty_like(weight), weight.new_empty(len(weight))
        to_projection, to_read_bias = torch.zeros_like(projection), projection.new_zeros(reads)
        for some, part in _chunks(rows, dim, size, reads * vectors.element_size(), ctx.chunk_bytes):
            to_read = torch.cat([to_queries_keys[:, some], to_values[:, :, some].permute(1, 2, 0)], dim=2).flatten(0, 1)
            to_made = (to_read @ projection).view(rows, part.stop - part.start)
            to_projection.addmm_(to_read.t(), tokens[:, some].flatten(0, 1))
            to_read_bias += to_read.sum(0)
            torch.mm(to_made.t(), vectors, out=to_weight[part])
            torch.sum(to_made, 0, out=to_bias[part])
            if to_vectors is not None:
                to_vectors.addmm_(to_made, weight[part])
        return to_vectors, to_weight, to_bias, to_projection, to_read_bias, None, None, None


def _chunks(rows: int, dim: int, size: int, read_bytes: int, chunk_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of the features, with those of the rows of the embedding that make their tokens."""
    count = max(1, chunk_bytes // max(1, 2 * rows * read_bytes))
    for start in range(0, dim, count):
        stop = min(start + count, dim)
        yield slice(start, stop), slice(start * size, stop * size)
