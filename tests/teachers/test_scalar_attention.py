"""Attention with scalar values against plain attention, and the published mask against its plain form."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moekd.errors import ModelError
from moekd.teachers import FactorisedAttentionMask, FeatureAttentionMask, Mask
from moekd.teachers.scalar_attention import scalar_attention

from ..builders import make_mask, randomise


def plain_attention(queries_keys: Tensor, values: Tensor) -> Tensor:
    heads, width = values.shape[0], queries_keys.shape[2] // 2
    queries, keys = queries_keys[..., :width], queries_keys[..., width:]
    queries, keys = (x.unflatten(2, (heads, -1)).permute(2, 0, 1, 3) for x in (queries, keys))
    return ((queries @ keys.transpose(2, 3)).softmax(-1) @ values[..., None])[..., 0]


def plain_mask(mask: FeatureAttentionMask, z: Tensor) -> Tensor:
    """Return what the mask computes with `nn.MultiheadAttention` called as a module."""
    vector = mask.spatial_reduce(z) if mask.spatial else z
    tokens = mask.embed(vector).unflatten(1, (mask.dim, mask.hidden))
    attended, _ = mask.mha(tokens, tokens, tokens, need_weights=True)
    weights = torch.sigmoid(mask.fc(attended))[:, :, 0]
    return weights.reshape(*weights.shape, *[1] * (z.dim() - 2)).expand_as(z)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.integers(1, 7), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_function_and_gradients_are_those_of_plain_attention(
    rows: int, tokens: int, heads: int, size: int, maps: int
) -> None:
    rng = torch.Generator().manual_seed(rows + 10 * tokens)
    queries_keys = torch.randn(rows, tokens, 2 * heads * size, generator=rng, dtype=torch.float64).requires_grad_()
    values = torch.randn(heads, rows, tokens, generator=rng, dtype=torch.float64).requires_grad_()
    ours = scalar_attention(queries_keys, values, chunk_bytes=maps * tokens * tokens * 8)
    plain = plain_attention(queries_keys, values)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    pull = torch.randn(plain.shape, generator=rng, dtype=torch.float64)
    mine = torch.autograd.grad((ours * pull).sum(), (queries_keys, values))
    theirs = torch.autograd.grad((plain * pull).sum(), (queries_keys, values))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_gradients_are_right_by_differences() -> None:
    queries_keys = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: scalar_attention(*x, chunk_bytes=600), (queries_keys, values))


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize(("dim", "factor", "heads"), [(12, 2, 3), (31, 4, 2), (6, 2, 1)])
def test_mask_and_all_its_gradients_are_those_of_the_module(dim: int, factor: int, heads: int, spatial: bool) -> None:
    mask = FeatureAttentionMask(dim, factor, heads, spatial).double()
    mask = randomise(mask, seed=4, scale=0.3).double().requires_grad_(True).train()
    z = torch.randn(5, dim, *([4, 6] if spatial else []), dtype=torch.float64, requires_grad=True)
    pull = torch.randn(z.shape, dtype=torch.float64)
    inputs = {"activation": z} | dict(mask.named_parameters())
    gradients = []
    for weights in (mask(z), plain_mask(mask, z)):
        gradients.append([weights, *torch.autograd.grad((weights * pull).sum(), list(inputs.values()))])
    for name, one, other in zip(["mask", *inputs], *gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_half_precision_is_close() -> None:
    mask, z = make_mask().requires_grad_(True), torch.randn(6, 12)
    gradients = []
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            weights = mask(z)
        assert weights.dtype == torch.float32
        gradients.append([weights, *torch.autograd.grad(weights.square().sum(), mask.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.05 * float(one.detach().abs().max()))
    halved = make_mask().bfloat16()
    torch.testing.assert_close(halved(z).float(), mask(z), rtol=0.05, atol=0.05)


def test_no_attention_map_is_kept_for_the_backward_pass() -> None:
    mask = FeatureAttentionMask(40)
    rows, maps = 16, 3 * 16 * 40 * 40
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mask(torch.randn(rows, 40)).sum()
    assert max(kept) < maps


def test_gradients_of_gradients_are_refused() -> None:
    queries_keys, values = torch.randn(2, 3, 4, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    with pytest.raises(ModelError, match="no second derivatives"):
        torch.autograd.grad(scalar_attention(queries_keys, values).sum(), values, create_graph=True)


@pytest.mark.parametrize("kind", [FeatureAttentionMask, FactorisedAttentionMask])
def test_shapes_alone_are_enough_to_plan(kind: type[Mask]) -> None:
    with torch.device("meta"):
        weights = kind(24)(torch.empty(5, 24))
    assert weights.shape == (5, 24)
    weights.sum().backward()


def test_the_published_mask_takes_nine_products_where_the_module_takes_fifteen() -> None:
    mask, z = FeatureAttentionMask(120), torch.randn(4, 120)
    unit = 2 * 4 * 120 * 120 * mask.hidden
    counts = []
    for weights in (mask, partial(plain_mask, mask)):
        with FlopCounterMode(display=False) as counter:
            weights(z.clone().requires_grad_(weights is not mask)).sum().backward()
        counts.append(counter.get_total_flops() / unit)
    assert counts[0] < 9.5
    assert counts[1] > 14.9
