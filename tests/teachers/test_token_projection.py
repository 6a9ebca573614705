"""Tokens made a few at a time against tokens made at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekd.errors import ModelError
from moekd.teachers.token_projection import project_tokens


def at_once(vectors: Tensor, embed: nn.Linear, projection: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    tokens = embed(vectors).reshape(len(vectors), vectors.shape[1], projection.shape[1])
    read = tokens @ projection.T + bias
    return read[..., : len(projection) - heads], read[..., len(projection) - heads :].permute(2, 0, 1)


def inputs(rows: int, dim: int, size: int, heads: int) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows + 7 * dim + 31 * size)
    embed = nn.Linear(dim, dim * size).double()
    reads = 2 * size + heads
    tensors = [
        torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((rows, dim), (reads, size), (reads,))
    ]
    vectors, projection, bias = (tensor.requires_grad_() for tensor in tensors)
    return vectors, embed, projection, bias


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_function_and_gradients_are_those_of_all_tokens(
    rows: int, dim: int, size: int, heads: int, features: int
) -> None:
    vectors, embed, projection, bias = inputs(rows, dim, size, heads)
    chunk = 2 * rows * len(projection) * 8 * features
    found = []
    for made in (
        project_tokens(vectors, embed, projection, bias, heads, chunk),
        at_once(vectors, embed, projection, bias, heads),
    ):
        pulls = [torch.sin(torch.arange(float(part.numel()), dtype=torch.float64)).view(part.shape) for part in made]
        loss = sum((part * pull).sum() for part, pull in zip(made, pulls, strict=True))
        leaves = (vectors, *embed.parameters(), projection, bias)
        found.append([*made, *torch.autograd.grad(loss, leaves)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-12)


def test_gradients_are_right_by_differences() -> None:
    vectors, embed, projection, bias = inputs(3, 4, 2, 2)
    weights = [parameter.detach().clone().requires_grad_() for parameter in embed.parameters()]

    def run(vectors: Tensor, weight: Tensor, offset: Tensor, projection: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        made = nn.Linear(1, 1)
        del made.weight, made.bias
        made.weight, made.bias = weight, offset
        return project_tokens(vectors, made, projection, bias, 2, chunk_bytes=400)

    assert torch.autograd.gradcheck(run, (vectors, *weights, projection, bias))


def test_nothing_is_kept_without_gradients() -> None:
    vectors, embed, projection, bias = inputs(3, 4, 2, 1)
    with torch.no_grad():
        queries_keys, values = project_tokens(vectors, embed, projection, bias, 1)
    assert not queries_keys.requires_grad
    assert (queries_keys.shape, values.shape) == ((3, 4, 4), (1, 3, 4))


def test_gradients_of_gradients_are_refused() -> None:
    vectors, embed, projection, bias = inputs(2, 3, 2, 1)
    values = project_tokens(vectors, embed, projection, bias, 1)[1]
    with pytest.raises(ModelError, match="no second derivatives"):
        torch.autograd.grad(values.sum(), projection, create_graph=True)
