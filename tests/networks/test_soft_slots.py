"""Soft mixture of experts: sums, known cases, a naive loop, permutations, padding, a network from a config."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moekd.config import Spec, build
from moekd.errors import ConfigError, ModelError
from moekd.networks import NETWORKS, SlotFusion, SoftSlots, slot_weights
from moekd.networks.mlp import MlpEncoder


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 7),
    st.sampled_from([0.0, 1.0, 1e4]),
    st.integers(0, 999),
)
def test_every_slot_reads_a_mean_and_every_token_gets_one(
    rows: int, tokens: int, width: int, slots: int, scale: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tokens, width, generator=rng) * 1e4
    dispatch, combine = slot_weights(x, torch.randn(slots, width, generator=rng), scale)
    torch.testing.assert_close(dispatch.sum(1), torch.ones(rows, slots))
    torch.testing.assert_close(combine.sum(2), torch.ones(rows, tokens))
    assert dispatch.isfinite().all()
    if scale == 0:
        torch.testing.assert_close(dispatch, torch.full_like(dispatch, 1 / tokens))
        torch.testing.assert_close(combine, torch.full_like(combine, 1 / slots))


def test_known_values() -> None:
    """Tokens along the axes, slots along the axes: cosines 1 and 0, softmax of (1, 0) is (0.7311, 0.2689)."""
    dispatch, combine = slot_weights(torch.tensor([[[3.0, 0.0], [0.0, 0.1]]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
    expected = torch.tensor([[[0.7311, 0.2689], [0.2689, 0.7311]]])
    torch.testing.assert_close(dispatch, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(combine, expected, atol=1e-4, rtol=0)


def test_equals_a_loop() -> None:
    torch.manual_seed(0)
    module = SoftSlots(5, [nn.Linear(5, 5) for _ in range(3)], slots=2)
    with torch.no_grad():
        module.scale.fill_(3.0)
    x = torch.randn(2, 4, 5)
    found = module(x)
    for b in range(2):
        scores = torch.stack(
            [torch.stack([3 * F.cosine_similarity(token, slot, dim=0) for slot in module.slots]) for token in x[b]]
        )
        read = [sum(scores[:, s].softmax(0)[n] * x[b, n] for n in range(4)) for s in range(6)]
        said = [module.experts[s // 2](read[s]) for s in range(6)]
        for n in range(4):
            expected = sum(scores[n].softmax(0)[s] * said[s] for s in range(6))
            torch.testing.assert_close(found[b, n], expected, rtol=1e-4, atol=1e-5)


def test_one_expert_with_one_slot_says_the_same_to_every_token() -> None:
    torch.manual_seed(0)
    module, x = SoftSlots(5, [nn.Linear(5, 5)]), torch.randn(2, 4, 5)
    assert torch.allclose(module(x), module(x)[:, :1].expand(-1, 4, -1), atol=1e-6)
    with torch.no_grad():
        module.scale.zero_()
    torch.testing.assert_close(module(x)[:, 0], module.experts[0](x.mean(1)))


def test_tokens_are_a_set_and_rows_do_not_meet() -> None:
    torch.manual_seed(0)
    module, x, order = SoftSlots(5, [nn.Linear(5, 5) for _ in range(2)]), torch.randn(3, 4, 5), [2, 0, 3, 1]
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])
    torch.testing.assert_close(module(x[1:2]), module(x)[1:2])


def test_padding_is_not_read() -> None:
    torch.manual_seed(0)
    module, x = SoftSlots(5, [nn.Linear(5, 5) for _ in range(2)]), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    found = module(x, mask)
    torch.testing.assert_close(found[:1, :2], module(x[:1, :2]))
    assert found.isfinite().all()
    assert torch.equal(slot_weights(x, module.slots, mask_BN=mask)[0][1], torch.zeros(4, 2))


def test_everything_has_a_gradient() -> None:
    torch.manual_seed(0)
    module = SoftSlots(5, [nn.Linear(5, 5) for _ in range(3)], slots=2)
    module(torch.randn(2, 4, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_a_network_of_two_inputs_from_a_config() -> None:
    encoders = [Spec("mlp_encoder", {"in_features": 8, "hidden": [12]}), Spec("mlp_encoder", {"in_features": 10})]
    network = build(Spec("slot_fusion", {"encoders": encoders, "width": 6}), NETWORKS, num_classes=4)
    logits = network(torch.randn(3, 8), torch.randn(3, 10))
    assert logits.shape == (3, 4)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_both_inputs_count() -> None:
    torch.manual_seed(0)
    network = SlotFusion(4, [MlpEncoder(8, [12]), MlpEncoder(10, [12])])
    left, right = torch.randn(3, 8), torch.randn(3, 10)
    assert not torch.equal(network(left, right), network(left, right + 1))
    assert not torch.equal(network(left, right), network(left + 1, right))


def test_refused() -> None:
    with pytest.raises(ConfigError, match="expected at least one, found none"):
        SlotFusion(4, [])
    with pytest.raises(ModelError, match="SlotFusion has 1 encoders, but got 2 inputs"):
        SlotFusion(4, [MlpEncoder(8, [12])])(torch.randn(3, 8), torch.randn(3, 8))
    with pytest.raises(ModelError, match="SlotFusion input 1: "):
        SlotFusion(4, [MlpEncoder(8, [12])])(torch.randn(3, 9))
    with pytest.raises(ModelError, match="joins branches with 3, 4 rows"):
        SlotFusion(4, [MlpEncoder(8, [12]), MlpEncoder(8, [12])])(torch.randn(3, 8), torch.randn(4, 8))
